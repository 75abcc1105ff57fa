# Picks the CUDA compiler; include before project().
#   1. CMAKE_CUDA_COMPILER or CUDACXX, if set;
#   2. the nvcc of NVIDIA's wheels that ${Python_EXECUTABLE} sees: pip's isolated build environment;
#   3. else CMake's own search.
# The wheels lack what nvcc and FindCUDAToolkit look for (lib64/, libcudart.so), so they are used through a folder of
# links that adds it. bin/ must be a real folder of links: through a linked one, nvcc finds its way back to the wheel.
set(_view "${CMAKE_BINARY_DIR}/cuda-view")
if(DEFINED ENV{CUDACXX} OR (DEFINED CMAKE_CUDA_COMPILER AND NOT CMAKE_CUDA_COMPILER STREQUAL "${_view}/bin/nvcc"))
  return()
endif()
if(NOT Python_EXECUTABLE)
  find_program(Python_EXECUTABLE NAMES python3 python)
endif()
execute_process(
  COMMAND "${Python_EXECUTABLE}" -c
"import importlib.util, pathlib
spec = importlib.util.find_spec('nvidia')
for place in (spec.submodule_search_locations if spec else []):
    root = pathlib.Path(place) / 'cu13'
    if (root / 'bin' / 'nvcc').exists() and (root / 'nvvm' / 'bin' / 'cicc').exists():
        print(root.as_posix())
        break"
  OUTPUT_VARIABLE _wheel OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
if(NOT _wheel)
  return()
endif()

file(REMOVE_RECURSE "${_view}")
file(MAKE_DIRECTORY "${_view}/bin" "${_view}/lib64")
file(GLOB _programs "${_wheel}/bin/*")
file(GLOB _libraries "${_wheel}/lib/*.a" "${_wheel}/lib/*.so*")
foreach(_file IN LISTS _programs)
  get_filename_component(_name "${_file}" NAME)
  file(CREATE_LINK "${_file}" "${_view}/bin/${_name}" SYMBOLIC)
endforeach()
foreach(_file IN LISTS _libraries)
  get_filename_component(_name "${_file}" NAME)
  file(CREATE_LINK "${_file}" "${_view}/lib64/${_name}" SYMBOLIC)
endforeach()
file(GLOB _cudart "${_wheel}/lib/libcudart.so.*")
list(GET _cudart 0 _cudart)
file(CREATE_LINK "${_cudart}" "${_view}/lib64/libcudart.so" SYMBOLIC)
file(CREATE_LINK "${_wheel}/include" "${_view}/include" SYMBOLIC)
file(CREATE_LINK "${_wheel}/nvvm" "${_view}/nvvm" SYMBOLIC)
file(CREATE_LINK lib64 "${_view}/lib" SYMBOLIC)
set(CMAKE_CUDA_COMPILER "${_view}/bin/nvcc" CACHE FILEPATH "nvcc of the NVIDIA wheels" FORCE)
set(CUDAToolkit_ROOT "${_view}" CACHE PATH "" FORCE)
message(STATUS "CUDA compiler from NVIDIA's wheels: ${_wheel}")
