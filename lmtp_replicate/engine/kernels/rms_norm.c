/* Root mean square norm (https://arxiv.org/abs/1910.07467) of rows. Compiled and called by
   compiled_norms.py. */

#include "parts.h"

/* output = x / sqrt(mean(x^2) + epsilon) * weight, by rows of `dim`, a multiple of WIDTH. Where
   `added` is not null, x += added comes first. */
void lmtp_rms_norm(number *output, number *x, const number *added, const number *weight,
                   int64_t rows, int64_t dim, float epsilon) {
#pragma omp parallel for if (rows * dim > 32768)
    for (int64_t r = 0; r < rows; r++) {
        number *from = x + r * dim, *to = output + r * dim;
        vec squares = all(0);
        for (int64_t d = 0; d < dim; d += WIDTH) {
            if (added)
                store_numbers(from + d, load_numbers(from + d) + load_numbers(added + r * dim + d));
            const vec a = load_numbers(from + d);
            squares += a * a;
        }
        const float scale = 1 / __builtin_sqrtf(sum_of(squares) / dim + epsilon);
        for (int64_t d = 0; d < dim; d += WIDTH)
            store_numbers(to + d, load_numbers(from + d) * scale * load_numbers(weight + d));
    }
}
