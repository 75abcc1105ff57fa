// ROPE_CONCAT(kRotate, ROPEROPE_CPU_SET): the name of a set for the instruction set that is being built.
#pragma once

#define ROPE_CONCAT_(a, b) a##b
#define ROPE_CONCAT(a, b) ROPE_CONCAT_(a, b)
#define ROPE_STRING_(a) #a
#define ROPE_STRING(a) ROPE_STRING_(a)
