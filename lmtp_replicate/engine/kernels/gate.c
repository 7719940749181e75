/* The gate of a feed-forward layer (https://arxiv.org/abs/2002.05202). Compiled and called by
   compiled_layers.py. */

#include "parts.h"

/* gate = gate / (1 + e^-gate) * up, for `count` numbers, a multiple of WIDTH. */
void lmtp_gate(number *gate, const number *up, int64_t count) {
#pragma omp parallel for if (count > 32768)
    for (int64_t i = 0; i < count; i += WIDTH) {
        const vec x = load_numbers(gate + i);
        const ints is_negative = x < all(0);
        const vec e = exponential(chosen(is_negative, x, -x)); /* of -|x|, which cannot overflow */
        const vec sigmoid = chosen(is_negative, e, all(1)) / (1 + e);
        store_numbers(gate + i, x * sigmoid * load_numbers(up + i));
    }
}
