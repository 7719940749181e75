/* A linear layer whose weights are bfloat16, where products are float32's: of a model in float32 whose
   weights were saved so, or of one in bfloat16 on a CPU without products of bfloat16. Called by
   compiled_linear.py and decoder.c; sixteen_bit_linear.py lays out the weights. */

#if defined(__FMA__) && !(defined(BFLOAT16) && defined(__AVX512BF16__))

#include "vector.h"

#define BYTES 2
#define UNIT 1

INLINE vec weights_at(const uint8_t *at) { return load_upper_halves(at); }

#include "panels.h"

void lmtp_linear_bfloat16(const Linear *layers, number *const *outputs, int64_t count, const number *x,
                          int64_t rows, void *room) {
    multiply_all(layers, outputs, count, x, rows, room);
}

#endif
