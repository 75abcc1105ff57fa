// rope_apply as a part of another call.
#pragma once

#include "status.h"

namespace rope::api {

// asks: nothing is done but to say whether the call is right.
rope_status apply(const rope_apply_desc* desc, bool asks);

}  // namespace rope::api
