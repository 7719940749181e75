/* What a kernel for linear layers is given: output[row][out] = x[row] . weight[out] + bias[out]. */

#pragma once

#include "number.h"

typedef struct {
    const void *weight;   /* laid out as the kernel says */
    const float *factors; /* of each output, where the weight is whole numbers; else null */
    const number *bias;   /* of each output; or null */
    int64_t inputs, outputs;
} Linear;

/* `count` layers with the same inputs `x`, `[row][input]`, each with an output `[row][output]`.
   `room`: for what some kernels make of the inputs. */
typedef void Multiply(const Linear *layers, number *const *outputs, int64_t count, const number *x,
                      int64_t rows, void *room);
