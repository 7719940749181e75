/* A linear layer in float32 whose weights were saved in float16. Called by compiled_linear.py and
   decoder.c; sixteen_bit_linear.py lays out the weights. */

#if !defined(BFLOAT16) && defined(__FMA__) && defined(__F16C__)

#include <immintrin.h>

#include "vector.h"

#define BYTES 2
#define UNIT 1

INLINE vec weights_at(const uint8_t *at) {
#ifdef __AVX512F__
    return (vec)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)at));
#else
    return (vec)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)at));
#endif
}

#include "panels.h"

void lmtp_linear_float16(const Linear *layers, number *const *outputs, int64_t count, const number *x,
                         int64_t rows, void *room) {
    multiply_all(layers, outputs, count, x, rows, room);
}

#endif
