/* A linear layer in float32 whose weights are whole numbers of three bytes, three quarters of float32's.
   Called by compiled_linear.py and decoder.c; three_byte_linear.py lays out the weights. */

#if defined(__AVX512BW__) || defined(__AVX2__) && !defined(__AVX512F__)
#define HAS_SHUFFLES
#endif

#if !defined(BFLOAT16) && defined(__FMA__) && defined(HAS_SHUFFLES)

#include <immintrin.h>

#include "vector.h"

#define BYTES 3
#define UNIT 0x1p-8f

/* Their bytes are the upper three of four. With AVX2 shuffles and conversion are in units that products
   leave free. */
INLINE vec weights_at(const uint8_t *at) {
#ifdef __AVX512BW__
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 3, 4, 5, 6, 6, 7, 8, 9, 9, 10, 11, 12);
    const __m512i spread =
        _mm512_broadcast_i32x4(_mm_setr_epi8(-1, 0, 1, 2, -1, 3, 4, 5, -1, 6, 7, 8, -1, 9, 10, 11));
    const __m512i bytes = _mm512_permutexvar_epi32(lanes, _mm512_loadu_si512(at));
    return (vec)_mm512_cvtepi32_ps(_mm512_shuffle_epi8(bytes, spread));
#else
    const __m256i spread = _mm256_setr_epi8(-1, 4, 5, 6, -1, 7, 8, 9, -1, 10, 11, 12, -1, 13, 14, 15,
                                            -1, 0, 1, 2, -1, 3, 4, 5, -1, 6, 7, 8, -1, 9, 10, 11);
    const __m256i bytes = _mm256_loadu_si256((const __m256i *)(at - 4));
    return (vec)_mm256_cvtepi32_ps(_mm256_shuffle_epi8(bytes, spread));
#endif
}

#include "panels.h"

void lmtp_linear_bytes(const Linear *layers, number *const *outputs, int64_t count, const number *x,
                       int64_t rows, void *room) {
    multiply_all(layers, outputs, count, x, rows, room);
}

#endif
