/* Root mean square norm (https://arxiv.org/abs/1910.07467) of rows of float32. Compiled and called by
   compiled_norms.py. */

#include "vector.h"

/* output = x / sqrt(mean(x^2) + epsilon) * weight, by rows of `dim`, a multiple of WIDTH. Where
   `added` is not null, x += added comes first. */
void lmtp_rms_norm(float *output, float *x, const float *added, const float *weight, int64_t rows,
                   int64_t dim, float epsilon) {
#pragma omp parallel for if (rows * dim > 32768)
    for (int64_t r = 0; r < rows; r++) {
        float *from = x + r * dim, *to = output + r * dim;
        vec squares = all(0);
        for (int64_t d = 0; d < dim; d += WIDTH) {
            vec a = load(from + d);
            if (added) store(from + d, a += load(added + r * dim + d));
            squares += a * a;
        }
        const float scale = 1 / __builtin_sqrtf(sum_of(squares) / dim + epsilon);
        for (int64_t d = 0; d < dim; d += WIDTH)
            store(to + d, load(from + d) * scale * load(weight + d));
    }
}
