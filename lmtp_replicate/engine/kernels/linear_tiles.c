/* A linear layer in bfloat16 by AMX, which multiplies tiles of 16 rows and 32 inputs by tiles of 32
   inputs and 16 outputs (Intel's Architecture Instruction Set Extensions Programming Reference,
   chapter 3). Called by compiled_linear.py in place of linear.c's, where the system allows.

   oneDNN's kernels for the same instructions take 1.4 times as long for few rows: they do not ask
   memory in advance, which is what few rows wait for. With many they are the faster ones. */

#include "packed.h"

#if defined(BFLOAT16) && defined(__AMX_BF16__)

#include <immintrin.h>

enum {
    SIDE = 16,               /* rows of a tile, and outputs */
    ROWS = 2 * SIDE,         /* that are computed at once, with a block of as many outputs */
    STRIDE = 2 * BLOCK * sizeof(number), /* bytes from pair to pair of inputs in a weight's block */
};

const int32_t lmtp_tiles_rows = 128;

/* Tiles 0 to 3: sums of both tiles of rows by both tiles of outputs; 4 and 5: rows; 6 and 7: weights. */
static void configure(int64_t rows) {
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } config = {.palette = 1};
    const uint8_t first = rows < SIDE ? rows : SIDE, second = rows - first;
    const uint8_t each[8] = {first, first, second, second, first, second, SIDE, SIDE};
    for (int tile = 0; tile < 8; tile++) {
        config.rows[tile] = each[tile];
        config.bytes[tile] = each[tile] ? 64 : 0;
    }
    /* GCC's header tells of 8 bytes that are read (https://gcc.gnu.org/PR114098): all are. */
    __asm__ volatile("" : : "m"(config) : "memory");
    _tile_loadconfig(&config);
}

/* sums[row][output] = x[row] . weight[output], for at most ROWS rows and a block of outputs.
   `is_first`: nobody has read this weight yet. */
INLINE void multiply(int has_second, int is_first, int64_t inputs, const number *x,
                     const number *weight, float *sums) {
    _tile_zero(0);
    _tile_zero(1);
    if (has_second) {
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t k = 0; k < inputs; k += BLOCK_INPUTS) {
        const number *here = weight + k * BLOCK;
        if (is_first) fetch(here + AHEAD, BLOCK_INPUTS * BLOCK);
        _tile_loadd(6, here, STRIDE);
        _tile_loadd(7, here + 2 * SIDE, STRIDE);
        _tile_loadd(4, x + k, inputs * sizeof *x);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        if (has_second) {
            _tile_loadd(5, x + SIDE * inputs + k, inputs * sizeof *x);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, sums, BLOCK * sizeof *sums);
    _tile_stored(1, sums + SIDE, BLOCK * sizeof *sums);
    if (has_second) {
        _tile_stored(2, sums + SIDE * BLOCK, BLOCK * sizeof *sums);
        _tile_stored(3, sums + SIDE * BLOCK + SIDE, BLOCK * sizeof *sums);
    }
}

/* output[row][out] = x[row] . weight[out] + bias[out]; `bias` may be null. Needs: inputs a multiple of
   BLOCK_INPUTS. */
void lmtp_linear_tiles(number *output, const number *x, const number *weight, const number *bias,
                       int64_t rows, int64_t inputs, int64_t outputs) {
#pragma omp parallel for
    for (int64_t from = 0; from < outputs; from += BLOCK) {
        const int64_t count = outputs - from < BLOCK ? outputs - from : BLOCK;
        int64_t configured = 0;
        for (int64_t row = 0; row < rows; row += ROWS) {
            const int64_t taken = rows - row < ROWS ? rows - row : ROWS;
            const number *these = x + row * inputs, *block = weight + from * inputs;
            float sums[ROWS * BLOCK];
            if (taken != configured) configure(configured = taken);
            if (taken > SIDE) multiply(1, row == 0, inputs, these, block, sums);
            else multiply(0, row == 0, inputs, these, block, sums);
            for (int64_t r = 0; r < taken; r++)
                for (int64_t i = 0; i < count; i++) {
                    const float sum = sums[r * BLOCK + i];
                    output[(row + r) * outputs + from + i] =
                        number_from(bias ? sum + number_as_float(bias[from + i]) : sum);
                }
        }
        _tile_release();
    }
}

#endif
