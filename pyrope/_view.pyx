# cython: language_level=3, freethreading_compatible=True, annotation_typing=False
"""What callers may pass for memory and streams, read into plain C values. Of it only Rows keeps a reference."""

cimport cython

from operator import index

from cpython.long cimport PyLong_AsLongLongAndOverflow
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_IsValid, PyCapsule_SetName
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t

# The part of the DLPack ABI (version 0, which every producer speaks) that is read here.
cdef struct DLTensor:
    void* data
    int32_t device_type
    int32_t device_id
    int32_t ndim
    uint8_t code
    uint8_t bits
    uint16_t lanes
    int64_t* shape
    int64_t* strides
    uint64_t byte_offset

cdef struct DLManagedTensor:
    DLTensor tensor
    void* context
    void (*deleter)(DLManagedTensor*) noexcept

# DLPack 1.3: what a producer's type has as __dlpack_c_exchange_api__. A twentieth of the time of a capsule from torch.
cdef struct DLExchange:
    uint32_t major
    uint32_t minor
    void* previous
    void* allocate
    void* from_object
    void* to_object
    int (*borrow)(void* object, DLTensor* tensor) except -1
    int (*current_stream)(int32_t device_type, int32_t device_id, void** stream) except -1

# NumPy's array interface in C: what __array_struct__ holds. A twentieth of the time of its twin, the dictionary.
cdef struct ArrayStruct:
    int two
    int ndim
    char kind
    int itemsize
    int flags
    Py_ssize_t* shape
    Py_ssize_t* strides
    void* data

cdef enum:
    ARRAY_CONTIGUOUS = 0x1
    ARRAY_NOT_SWAPPED = 0x200
    ARRAY_WRITEABLE = 0x400

cdef enum:
    DEVICE_CPU = 1
    DEVICE_CUDA = 2
    DEVICE_CUDA_HOST = 3
    DEVICE_CUDA_MANAGED = 13

cdef enum:
    LOWEST_ADDRESS = 1 << 16  # Linux maps nothing below (vm.mmap_min_addr)


cdef bint is_cuda_python(object x):
    return type(x).__module__.startswith("cuda.")


cdef DLExchange* exchange_of(object x) except? NULL:
    """NULL: x is of a type without one, or with one of another version."""
    capsule = getattr(type(x), "__dlpack_c_exchange_api__", None)
    if capsule is None or not PyCapsule_IsValid(capsule, "dlpack_exchange_api"):
        return NULL
    exchange = <DLExchange*>PyCapsule_GetPointer(capsule, "dlpack_exchange_api")
    return exchange if exchange.major == 1 and exchange.borrow != NULL else NULL


cdef object array_struct_of(object x):
    """A capsule of an ArrayStruct, or None."""
    capsule = getattr(x, "__array_struct__", None)
    if capsule is None or not PyCapsule_IsValid(capsule, NULL):
        return None
    return capsule if (<ArrayStruct*>PyCapsule_GetPointer(capsule, NULL)).two == 2 else None


cdef bint is_array(object x):
    """Whether x describes its own memory. A pointer, in whatever form, does not."""
    if type(x) is int or x is None:
        return False
    if type(x) is Rows:
        return True
    if exchange_of(x) != NULL:
        return True
    if isinstance(x, type):
        return False
    if array_struct_of(x) is None:
        if is_cuda_python(x):
            return False
        if not hasattr(x, "__array_interface__"):
            return hasattr(x, "__dlpack__") or hasattr(x, "__cuda_array_interface__")
    return hasattr(x, "__len__") or getattr(x, "ndim", 1) > 0  # a NumPy scalar has the attributes too


cdef bint is_immutable(object x):
    """Arrays that may not be written although no protocol says so."""
    return type(x).__module__.partition(".")[0] in ("jax", "jaxlib")


cdef uintptr_t read_pointer(object x, str name, bint may_be_null) except? 0:
    """An address given as an int, anything with __index__, or a cuda-python handle or buffer."""
    cdef int overflow = 0
    cdef long long address
    if type(x) is int:  # nearly always, and on the path of every call
        address = PyLong_AsLongLongAndOverflow(x, &overflow)
        if overflow == 0 and address >= LOWEST_ADDRESS:
            return <uintptr_t>address
    if isinstance(x, (bool, float)) or x is None:
        raise TypeError(f"{name}: {x!r} is not a pointer; pass an int, a cuda-python handle or an array")
    if type(x) is not int:
        if is_cuda_python(x):
            if hasattr(x, "handle"):
                x = x.handle
            x = int(x)
        elif hasattr(type(x), "__index__"):
            x = x.__index__()
        elif isinstance(x, (list, tuple)):
            raise TypeError(f"{name}: a {type(x).__name__} is no array; use numpy.asarray")
        else:
            raise TypeError(f"{name}: {type(x).__name__} is not a pointer; pass an int, a cuda-python handle or "
                            "an array with __dlpack__, __array_interface__ or __cuda_array_interface__")
    if x == 0 and may_be_null:
        return 0
    if x < LOWEST_ADDRESS or x > <uintptr_t>-1:
        hint = ""
        if x == 0:
            hint = "; pass None to leave the argument out"
        elif name == "positions":
            hint = "; the position of the first token is passed as offset="
        raise ValueError(f"{name}: {x:#x} is not the address of any memory{hint}")
    return x


cdef uintptr_t read_stream(object x) except? 0:
    """A stream given as None, an int, an object with __cuda_stream__, or a cuda-python handle. 0: legacy default."""
    cdef int overflow = 0
    cdef long long handle
    if x is None:
        return 0
    if type(x) is int:
        handle = PyLong_AsLongLongAndOverflow(x, &overflow)
        if overflow == 0 and handle >= 0:
            return <uintptr_t>handle
    if isinstance(x, (bool, float)):
        raise TypeError(f"stream: {x!r} is not a stream; pass an int, None or an object with __cuda_stream__")
    if type(x) is not int:
        if hasattr(x, "__cuda_stream__"):
            version, x = x.__cuda_stream__()
            if version != 0:
                raise ValueError(f"stream: __cuda_stream__ protocol version {version}, must be 0")
        elif is_cuda_python(x):
            x = int(x)
        elif hasattr(type(x), "__index__"):
            x = x.__index__()
        else:
            raise TypeError(f"stream: {type(x).__name__} is not a stream; pass an int, None or an object with "
                            "__cuda_stream__")
    if x < 0 or x > <uintptr_t>-1:
        raise ValueError(f"stream: {x} is not a stream handle")
    return x


cdef int check_ndim(str name, int ndim) except -1:
    if ndim > MAX_DIMS:
        raise ValueError(f"{name}: {ndim} dimensions, must be at most {MAX_DIMS}")
    return 0


cdef int check_shape(str name, View* view) except -1:
    """Sizes whose product is a number, and an address unless that is 0."""
    cdef int64_t elements = 1
    cdef int i
    for i in range(view.ndim):
        if view.shape[i] < 0 or (view.shape[i] > 0 and elements > (<int64_t>1 << 62) // view.shape[i]):
            raise ValueError(f"{name}: shape {tuple([view.shape[i] for i in range(view.ndim)])}, is that of no array")
        elements *= view.shape[i]
    if elements and view.data == NULL:
        raise ValueError(f"{name}: the array has no memory")
    return 0


cdef str dtype_name(object x):
    """Of NumPy's it is the name of the type of elements: theirs takes three microseconds."""
    dtype = getattr(x, "dtype", None)
    return getattr(dtype.type, "__name__", "") if hasattr(dtype, "type") else str(getattr(dtype, "name", ""))


cdef int fill_view(object x, str name, str kind, bint swapped, int64_t* steps, View* view) except -1:
    """What follows from the rest of an array interface. steps: bytes, or NULL where elements follow each other."""
    cdef int64_t step = 1
    cdef int i
    check_ndim(name, view.ndim)
    if swapped:
        view.kind = KIND_OTHER
    elif kind == "i":
        view.kind = KIND_INT
    elif dtype_name(x) == "bfloat16":
        view.kind = KIND_BFLOAT
    elif view.on_cuda and view.itemsize == 2 and kind in "fVu":
        view.kind = KIND_OPAQUE  # the interface has no name for bfloat16, and producers make do
    elif kind == "u":
        view.kind = KIND_UINT
    else:
        view.kind = KIND_FLOAT if kind == "f" else KIND_OTHER
    check_shape(name, view)
    for i in range(view.ndim - 1, -1, -1):
        if steps == NULL:
            view.strides[i] = step
            step *= view.shape[i]
        else:
            if steps[i] % view.itemsize:
                raise ValueError(f"{name}: a stride of {steps[i]} bytes is not a multiple of the element size")
            view.strides[i] = steps[i] // view.itemsize
    return 0


cdef int read_struct(object x, object capsule, str name, View* view) except -1:
    """The array interface of NumPy, in C."""
    cdef ArrayStruct* s = <ArrayStruct*>PyCapsule_GetPointer(capsule, NULL)
    cdef int64_t[MAX_DIMS] steps
    cdef int i
    view.itemsize = s.itemsize if 0 < s.itemsize < 1 << 16 else 1  # as below
    view.data, view.read_only, view.ndim = s.data, not s.flags & ARRAY_WRITEABLE, s.ndim
    for i in range(min(view.ndim, <int>MAX_DIMS)):
        view.shape[i], steps[i] = s.shape[i], s.strides[i]
    return fill_view(x, name, chr(s.kind), not s.flags & ARRAY_NOT_SWAPPED,
                     NULL if s.flags & ARRAY_CONTIGUOUS else steps, view)


cdef int read_interface(object x, object interface, str name, View* view) except -1:
    """The array interface as a dictionary, and its CUDA twin."""
    cdef int i
    cdef int64_t[MAX_DIMS] steps
    try:
        shape, strides, typestr = interface["shape"], interface.get("strides"), interface["typestr"]
        address, read_only = interface["data"]
        order, kind, size = typestr[0], typestr[1], typestr[2:]
        # Sizes that are no number of bytes belong to kinds that are refused.
        view.itemsize = int(size) if size.isdecimal() and 0 < int(size) < 1 << 16 else 1
        if strides is not None and len(strides) != len(shape):
            raise ValueError(f"{len(strides)} strides for {len(shape)} dimensions")
        view.data = <void*><uintptr_t>index(address)
        view.read_only = read_only
        view.ndim = len(shape)
        for i in range(min(view.ndim, <int>MAX_DIMS)):
            view.shape[i] = index(shape[i])
            steps[i] = 0 if strides is None else index(strides[i])
    except (AttributeError, LookupError, OverflowError, TypeError, ValueError) as error:
        raise TypeError(f"{name}: malformed array interface of {type(x).__name__}: {error!r}") from None
    return fill_view(x, name, kind, order == ">", NULL if strides is None else steps, view)


cdef int read_dltensor(DLTensor* t, str name, View* view) except -1:
    cdef int i
    cdef int64_t step = 1
    check_ndim(name, t.ndim)
    view.data = <char*>t.data + t.byte_offset
    view.read_only = False
    view.ndim = t.ndim
    view.itemsize = t.bits // 8
    view.kind = KIND_OTHER
    if t.lanes == 1:
        if t.code == 0:
            view.kind = KIND_INT
        elif t.code == 1:
            view.kind = KIND_UINT
        elif t.code == 2:
            view.kind = KIND_FLOAT
        elif t.code == 4:
            view.kind = KIND_BFLOAT
    view.on_cuda = t.device_type in (DEVICE_CUDA, DEVICE_CUDA_HOST, DEVICE_CUDA_MANAGED)
    view.on_cpu = t.device_type in (DEVICE_CPU, DEVICE_CUDA_HOST, DEVICE_CUDA_MANAGED)
    view.device = t.device_id if t.device_type == DEVICE_CUDA else -1
    for i in range(t.ndim - 1, -1, -1):
        view.shape[i] = t.shape[i]
        view.strides[i] = t.strides[i] if t.strides != NULL else step
        step *= t.shape[i]
    return 0


cdef bint read_borrowed(object x, str name, uintptr_t stream, DLExchange* exchange, View* view) except -1:
    """Whether x can be read without a capsule. Not if it requires grad, which a capsule of torch's refuses, or if the
    producer works on another stream than the call's, which then waits for it."""
    cdef DLTensor tensor
    cdef void* current = NULL
    if getattr(x, "requires_grad", False):
        return False
    exchange.borrow(<void*>x, &tensor)
    if tensor.device_type in (DEVICE_CUDA, DEVICE_CUDA_MANAGED):
        exchange.current_stream(tensor.device_type, tensor.device_id, &current)
        if <uintptr_t>current != stream:
            return False
    read_dltensor(&tensor, name, view)
    return True


cdef int read_dlpack(object x, str name, uintptr_t stream, View* view) except -1:
    device_type = int(x.__dlpack_device__()[0])
    try:
        if device_type in (DEVICE_CUDA, DEVICE_CUDA_MANAGED):
            capsule = x.__dlpack__(stream=stream if stream else 1)  # 1: the legacy default stream
        else:
            capsule = x.__dlpack__()
    except BufferError:
        if not getattr(x, "requires_grad", False):
            raise
        raise TypeError(f"{name}: requires grad, of which this call knows nothing; use pyrope.torch.apply, or pass "
                        "what detach() returns") from None
    if not PyCapsule_IsValid(capsule, "dltensor"):
        raise TypeError(f"{name}: __dlpack__ of {type(x).__name__} did not return a 'dltensor' capsule")
    cdef DLManagedTensor* managed = <DLManagedTensor*>PyCapsule_GetPointer(capsule, "dltensor")
    read_dltensor(&managed.tensor, name, view)
    # The caller's object keeps the memory; the capsule's own claim on it is over.
    PyCapsule_SetName(capsule, "used_dltensor")
    if managed.deleter != NULL:
        managed.deleter(managed)
    return 0


cdef int read_view(object x, str name, uintptr_t stream, View* view) except -1:
    if type(x) is Rows:
        view[0] = (<Rows>x).view
        return 0
    view.on_cpu = view.on_cuda = False
    view.device = -1
    cdef DLExchange* exchange = exchange_of(x)
    if exchange != NULL and read_borrowed(x, name, stream, exchange, view):
        return 0
    capsule = array_struct_of(x)
    if capsule is not None:
        view.on_cpu = True
        return read_struct(x, capsule, name, view)
    if hasattr(x, "__array_interface__"):
        view.on_cpu = True
        return read_interface(x, x.__array_interface__, name, view)
    if hasattr(x, "__dlpack__"):
        return read_dlpack(x, name, stream, view)
    view.on_cuda = True
    return read_interface(x, x.__cuda_array_interface__, name, view)


@cython.auto_pickle(False)
cdef class Rows:
    """Rows(name, x, heads_first, stream)
--

    An array of four dimensions, read once, as [outer, inner, heads, dim]: what front ends pass on in its place.

    A view by its own library would cost more than the rest of a call.

    Parameters
    ----------
    name : str
        Of the argument, for texts.
    x : array
        ``[outer, inner, heads, dim]``, or with ``heads_first`` ``[outer, heads, inner, dim]``.
    heads_first : bool
    stream : int
        What a call will be given, 0 for none.

    Attributes
    ----------
    outer, inner : int
        The sizes of the dimensions of tokens.
    folded : bool
        Whether they are one dimension with one stride. Of an array without elements they are.
    """

    def __init__(self, name: str, x: Memory, heads_first: bool, stream: int) -> None:
        cdef View* v = &self.view
        read_view(x, name, <uintptr_t>stream, v)
        if v.ndim != 4:
            raise ValueError(f"{name}: {v.ndim} dimensions, must be 4")
        self.base = x
        if heads_first:
            v.shape[1], v.shape[2] = v.shape[2], v.shape[1]
            v.strides[1], v.strides[2] = v.strides[2], v.strides[1]
        self._fold()

    cdef int _fold(self) except -1:
        cdef View* v = &self.view
        self.outer, self.inner = v.shape[0], v.shape[1]
        if self.outer == 0 or self.inner == 0:  # strides of such an array mean nothing
            v.shape[0], v.shape[1] = 0, 1
        self.folded = (v.shape[0] <= 1 or v.shape[1] == 1 or v.strides[0] == v.shape[1] * v.strides[1])
        return 0

    def swap(self) -> None:
        """Let the inner dimension of tokens be the outer one."""
        cdef View* v = &self.view
        v.shape[0], v.shape[1] = self.inner, self.outer
        v.strides[0], v.strides[1] = v.strides[1], v.strides[0]
        self._fold()

    @property
    def dtype(self) -> object:
        """The array's own."""
        return getattr(self.base, "dtype", "unknown")
