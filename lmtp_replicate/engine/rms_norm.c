/* Root mean square norm (https://arxiv.org/abs/1910.07467) of rows of float32. Compiled and called by
   compiled_norms.py. */

#include <stdint.h>

typedef float vec __attribute__((vector_size(32), aligned(4), may_alias));

/* output = x / sqrt(mean(x^2) + epsilon) * weight, by rows of `dim`, a multiple of 8. */
void lmtp_rms_norm(float *output, const float *x, const float *weight, int64_t rows, int64_t dim,
                   float epsilon) {
#pragma omp parallel for if (rows * dim > 32768)
    for (int64_t r = 0; r < rows; r++) {
        const float *from = x + r * dim;
        float *to = output + r * dim;
        vec squares = {0};
        for (int64_t d = 0; d < dim; d += 8) {
            const vec a = *(const vec *)(from + d);
            squares += a * a;
        }
        float sum = 0;
        for (int i = 0; i < 8; i++) sum += squares[i];
        const float scale = 1 / __builtin_sqrtf(sum / dim + epsilon);
        for (int64_t d = 0; d < dim; d += 8)
            *(vec *)(to + d) = *(const vec *)(from + d) * scale * *(const vec *)(weight + d);
    }
}
