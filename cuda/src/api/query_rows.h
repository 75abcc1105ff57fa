// Rows of cos and sin by which an attention kernel turns its queries.
#pragma once

#include "apply.h"

namespace rope::api {

inline constexpr int64_t kQueryRowBytes = 4;  // of an element

// Whether a rotation is one that rows stand for: of one position and one table of frequencies a token, in integers.
bool has_query_rows(const ApplyCall& rotation);

// Queues what makes the rows, [tokens, rotary_dim] float32, of sequences of so many tokens (0: of all tokens together),
// and says where a kernel finds them.
rope_status build_query_rows(const ApplyCall& rotation, int64_t sequence_tokens, void* rows, AttentionTurn* turn);

}  // namespace rope::api
