// What a call of attention, forward or backward, says: the same descriptor, read and checked in attention.cpp.
#pragma once

#include "checks.h"
#include "roperope/attention.h"

namespace rope::api {

inline constexpr int64_t kPartAlignment = 256;  // of workspace and its parts, bytes

// What a call needs to know of its descriptor, defaults filled in.
struct AttentionCall {
  rope_attention_desc d;
  bool ragged, turns_q, turns_k;
  int64_t q_rows, k_rows;  // tokens of all sequences
  Shape q, k, v, o;
  AttentionParams params;
};

// A tensor of the call as memory.
struct AttentionMemory {
  const char* name;  // null: there is none
  Rows rows;
};

// All but memory.
rope_status read_shape(const rope_attention_desc* desc, AttentionCall* c, const Operations** operations);

rope_status read_memory(const rope_attention_desc& d, const char* name, const rope_attention_tensor& x,
                        const Shape& shape, AttentionMemory* m);
AttentionTensor tensor_of(const Rows& rows);

// Memory that is written, or a block of it, is apart from the others.
rope_status check_written(const AttentionMemory& written, const AttentionMemory* others, int count);
rope_status check_block(const char* name, const void* data, int64_t bytes, const AttentionMemory* all, int count);

// The ends of ragged sequences, on the CPU, where they can be read.
rope_status check_sequences(const AttentionCall& c);

// The descriptor of what turns, but for its tensors.
rope_status read_rotation(const AttentionCall& c, rope_apply_desc* turn);

}  // namespace rope::api
