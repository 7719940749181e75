/* How oneDNN lays out the weight of a linear layer: in blocks of outputs, the last one filled up with
   zeros. Seen with torch 2.13 on CPUs with AVX2 and AVX-512 for float32, with AVX512-BF16 and AMX for
   bfloat16. */

#pragma once

#include "linear.h"

#ifdef BFLOAT16
/* `[input / 2][BLOCK][2]`, filled up with zeros to 32 inputs. (Where the CPU has AMX that our compiler
   does not know, or the system does not allow, they may lie otherwise: then oneDNN multiplies them.) */
#ifdef __AMX_TILE__
enum { BLOCK = 32, BLOCK_INPUTS = 32 };
#else
enum { BLOCK = 64, BLOCK_INPUTS = 32 };
#endif
#else
/* `[input][64]`. */
enum { BLOCK = 64, BLOCK_INPUTS = 1 };
#endif

enum { AHEAD = 2048 / sizeof(number) }; /* weights by which memory is asked in advance */
