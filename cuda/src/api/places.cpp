#include "places.h"

#include <algorithm>
#include <memory>

#include "../kernels/parts/device.h"
#include "../operations/token.h"

namespace rope::api {
namespace {

// Memory of the backend where the host can read it: itself on the CPU, else a copy.
class OnHost {
 public:
  rope_status read(const rope_apply_desc& d, const void* memory, int64_t bytes) {
    data_ = memory;
    if (d.backend == ROPE_BACKEND_CPU) return ROPE_OK;
    copy_ = std::make_unique<char[]>(size_t(bytes));
    data_ = copy_.get();
    const int error = cuda::copy_to_host(copy_.get(), memory, size_t(bytes), d.stream);
    return error ? fail(ROPE_ERR_CUDA, "flags: ROPE_FLAG_CHECK_PLACES could not read the cache's indices (%s)",
                        cuda::error_name(error))
                 : ROPE_OK;
  }

  const void* data() const { return data_; }
  const int32_t* integers() const { return static_cast<const int32_t*>(data_); }

 private:
  const void* data_ = nullptr;
  std::unique_ptr<char[]> copy_;
};

// The first and the last entry of the page table that a token's place is read from; false: there is none.
bool entries_used(const CacheMap& c, int64_t tokens, int64_t* first, int64_t* last) {
  *first = INT64_MAX, *last = -1;
  for (int64_t t = 0; t < tokens; ++t) {
    const CacheIndex at = cache_index(c, t);
    if (is_negative(at)) continue;
    const int64_t start = c.page_indptr ? c.page_indptr[at.request] : at.request * c.page_table_stride;
    const int64_t pages = c.page_indptr ? c.page_indptr[at.request + 1] - start : c.page_table_stride;
    const int64_t page = at.index / c.page_size;
    if (page >= pages) continue;
    *first = std::min(*first, start + page);
    *last = std::max(*last, start + page);
  }
  return *last >= 0;
}

rope_status refuse_first_outside(const CacheMap& c, int64_t tokens) {
  for (int64_t t = 0; t < tokens; ++t) {
    const CacheIndex at = cache_index(c, t);
    CachePlace place;
    if (is_negative(at) || cache_place<true>(c, at, false, &place)) continue;
    const auto number = static_cast<long long>(at.index), token = static_cast<long long>(t);
    if (!c.page_table)
      return fail(ROPE_ERR_INVALID_ARG, "slots: token %lld has slot %lld, must be below num_pages * page_size (%lld)",
                  token, number, static_cast<long long>(c.num_pages * c.page_size));
    return fail(ROPE_ERR_INVALID_ARG, "page_table: token %lld, number %lld of request %d, has no page of the %lld",
                token, number, at.request, static_cast<long long>(c.num_pages));
  }
  return ROPE_OK;
}

}  // namespace

rope_status check_places(const rope_apply_desc& d, const CacheMap& cache) {
  if (!cache.indices) return fail(ROPE_ERR_INVALID_ARG, "flags: ROPE_FLAG_CHECK_PLACES without a cache");
  CacheMap c = cache;
  OnHost indices, requests, starts, table;
  ROPE_TRY(indices.read(d, c.indices, d.num_tokens * (c.index_is_int32 ? 4 : 8)));
  c.indices = indices.data();
  if (c.page_table) {
    ROPE_TRY(requests.read(d, c.request_ids, d.num_tokens * 4));
    c.request_ids = requests.integers();
    if (c.page_indptr) {
      const int64_t last = *std::max_element(c.request_ids, c.request_ids + d.num_tokens);
      ROPE_TRY(starts.read(d, c.page_indptr, (std::max<int64_t>(last, -1) + 2) * 4));
      c.page_indptr = starts.integers();
    }
    int64_t first_entry, last_entry;
    if (entries_used(c, d.num_tokens, &first_entry, &last_entry)) {
      ROPE_TRY(table.read(d, c.page_table + first_entry, (last_entry - first_entry + 1) * 4));
      c.page_table = table.integers() - first_entry;
    }
  }
  return refuse_first_outside(c, d.num_tokens);
}

}  // namespace rope::api
