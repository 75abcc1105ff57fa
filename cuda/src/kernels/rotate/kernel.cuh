// The rotation kernel. Why it is mapped this way, with measurements: ../../../KERNELS.md.
//
// A thread owns one slot of a head, two chunks that hold whole pairs (math/pair.h): it computes their cos and sin
// once, keeps them in registers, and applies them to every head of its token that is its own. Behind the rotated slots
// come those that are only copied, out of place. Blocks and threads: grid_place() (parts/plan.h).
#pragma once

#include "../parts/chunk.h"
#include "../parts/launch.h"
#include "../parts/slot.h"
#include "../parts/turn.cuh"
#include "../parts/words.h"
#include "plan.h"

namespace rope::cuda {

// The whole argument, with the words by value: a launch needs no device memory of its own.
template <int kMaxPairs>
struct RotateArgs {
  RotateParams params;
  int32_t copy_slots;          // two chunks each of what is only copied
  bool prefetch;               // bring q and k into the second-level cache before the wait
  bool release_early;          // let the next kernel be scheduled before the wait
  uint8_t streams[kMaxPairs];  // of positions, of each pair
  alignas(16) uint64_t words[kMaxPairs];
};

namespace detail {

// One head of one token. Without `live` there is none.
struct Row {
  const char* in;
  char* out;
  bool live;
};

// Heads of a token count q heads first, then k heads.
__device__ __forceinline__ Row row_of(const RotateParams& p, int64_t token, int32_t head) {
  const bool is_q = head < p.num_q_heads;
  const Heads& x = is_q ? p.q : p.k;
  const int64_t h = is_q ? head : head - p.num_q_heads;
  return {x.in + token * x.in_token_stride + h * x.in_head_stride,
          x.out + token * x.out_token_stride + h * x.out_head_stride,
          token < p.num_tokens && head < p.num_q_heads + p.num_k_heads};
}

// cos and sin of a thread's pairs. False: the token is to be left alone.
template <SectionForm kSections, Angle kAngle, int kVec>
__device__ __forceinline__ bool form_angles(const RotateParams& p, int64_t token, const uint64_t* word,
                                            uint64_t streams, CosSin* angle) {
  if constexpr (kSections != SectionForm::kNone) {
    uint64_t phase[kVec];
    if (!section_phases<kSections, kAngle, kVec>(p.positions, streams, token, word, phase)) return false;
#pragma unroll
    for (int j = 0; j < kVec; ++j) angle[j] = scaled_angle(phase[j], p.cos_scale, p.sin_scale);
  } else {
    int64_t position;
    if (!position_of(p.positions, token, &position)) return false;
#pragma unroll
    for (int j = 0; j < kVec; ++j)
      angle[j] = scaled_angle(phase_at<kAngle>(position, word[j]), p.cos_scale, p.sin_scale);
  }
  return true;
}

}  // namespace detail

// kCopy: out of place with elements that are not rotated. kEarly: positions may be read, and angles formed, before the
// wait. kSections: how pairs share a token's positions. These are no arguments, as code for all costs registers.
template <class D, Layout kLayout, Angle kAngle, int kVec, int kUnroll, bool kCopy, bool kEarly, SectionForm kSections,
          int kMaxPairs>
__global__ void __launch_bounds__(kMaxBlock) rotate_kernel(const __grid_constant__ RotateArgs<kMaxPairs> args) {
  using C = Chunk<D, kVec>;
  const RotateParams& p = args.params;
  const GridPlace at = grid_place(blockIdx, threadIdx, blockDim, gridDim);
  const int64_t token = at.token;
  const int32_t heads = p.num_q_heads + p.num_k_heads, slot_index = at.slot, step = at.step;
  int32_t head = at.head;
  if (slot_index >= p.rotary_dim / 2 / kVec + args.copy_slots) return;

  // Everything that needs no memory but the arguments comes before the wait.
  const Slot slot =
      slot_of<kLayout, kVec, kCopy>(p.rotary_dim, p.rotary_offset, p.head_dim, args.copy_slots, slot_index);
  const PairMap<kLayout, kVec> map{slot.rotated ? slot_index : 0, p.rotary_dim / 2};
  const int64_t first = int64_t(slot.first) * C::kElementBytes, second = int64_t(slot.second) * C::kElementBytes;
  uint64_t word[kVec];
  load_words(as_memory(args.words), map, word);
  constexpr bool kStreams = kSections != SectionForm::kNone;
  const uint64_t streams = kStreams ? load_streams(as_memory(args.streams), map) : 0;
  detail::Row row[kUnroll];
  const auto take_rows = [&] {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      row[u] = detail::row_of(p, token, head + u * step);
      if (kCopy) row[u].live &= slot.rotated || row[u].in != row[u].out;
    }
  };
  take_rows();
  uint64_t digest = 0;
  fold(digest, CosSin{p.cos_scale, p.sin_scale});
  fold(digest, p.positions.kind, p.positions.ids, first, second, streams);
  fold(digest, word);
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) fold(digest, row[u].in, row[u].out, row[u].live);

  bool rotates = token < p.num_tokens;
  CosSin angle[kVec];
  const auto take_angles = [&] {
    rotates = rotates && detail::form_angles<kSections, kAngle, kVec>(p, token, word, streams, angle);
  };
  if (args.release_early) release_next();
  if (args.prefetch) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (!row[u].live) continue;
      prefetch(row[u].in + first);
      prefetch(row[u].in + second);
    }
  }
  if constexpr (kEarly) {
    take_angles();
    if (rotates) fold(digest, angle);
  }
  wait_for_previous(digest);
  release_next();

  C a[kUnroll], b[kUnroll];
  const auto load_rows = [&] {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (!row[u].live) continue;
      a[u] = *reinterpret_cast<const C*>(row[u].in + first);
      b[u] = *reinterpret_cast<const C*>(row[u].in + second);
    }
  };
  load_rows();  // in flight while the position arrives
  if constexpr (!kEarly) take_angles();
  if (!rotates) return;

  while (true) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (!row[u].live) continue;
      if (slot.rotated) {
        float x[2 * kVec];
        a[u].widen(x);
        b[u].widen(x + kVec);
        turn_pairs<kLayout, kVec>(angle, x);
        a[u].narrow(x);
        b[u].narrow(x + kVec);
      }
      *reinterpret_cast<C*>(row[u].out + first) = a[u];
      *reinterpret_cast<C*>(row[u].out + second) = b[u];
    }
    head += step * kUnroll;
    if (head >= heads) return;
    take_rows();
    load_rows();
  }
}

}  // namespace rope::cuda
