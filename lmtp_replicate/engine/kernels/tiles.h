/* AMX, which multiplies tiles of 16 rows and 32 inputs by tiles of 32 inputs and 16 outputs (Intel's
   Architecture Instruction Set Extensions Programming Reference, chapter 3). */

#pragma once

#ifdef __AMX_TILE__

#include <immintrin.h>

enum { SIDE = 16 }; /* rows of a tile, and outputs */

/* Tiles of 64 bytes in each of `rows` rows. */
static void load_tiles(const uint8_t rows[8]) {
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } config = {.palette = 1};
    for (int tile = 0; tile < 8; tile++) {
        config.rows[tile] = rows[tile];
        config.bytes[tile] = rows[tile] ? 64 : 0;
    }
    /* GCC's header tells of 8 bytes that are read (https://gcc.gnu.org/PR114098): all are. */
    __asm__ volatile("" : : "m"(config) : "memory");
    _tile_loadconfig(&config);
}

/* Tiles 0 to 3: sums of both tiles of rows by both tiles of outputs; 4 and 5: rows, of which there are
   `rows`; 6 and 7: what they are multiplied by. */
static void configure_tiles(int64_t rows) {
    const uint8_t first = rows < SIDE ? rows : SIDE, second = rows - first;
    load_tiles((uint8_t[]){first, first, second, second, first, second, SIDE, SIDE});
}

INLINE void zero_sums(int has_second) {
    _tile_zero(0);
    _tile_zero(1);
    if (has_second) {
        _tile_zero(2);
        _tile_zero(3);
    }
}

#endif

#if defined(BFLOAT16) && defined(__AMX_BF16__) && defined(__AVX512F__)
#define HAS_TILES

enum {
    TILES = 2 * SIDE, /* rows that are computed at once, with as many outputs */
    DEPTH = 32,       /* inputs */
};

/* GCC's header does not tell that loading a tile reads memory: all must have been written by now. */
#define WRITTEN __asm__ volatile("" : : : "memory")

/* `sums`: `[row][stride]`. */
INLINE void load_sums(int has_second, const float *sums, int64_t stride) {
    _tile_loadd(0, sums, stride * sizeof *sums);
    _tile_loadd(1, sums + SIDE, stride * sizeof *sums);
    if (has_second) {
        _tile_loadd(2, sums + SIDE * stride, stride * sizeof *sums);
        _tile_loadd(3, sums + SIDE * stride + SIDE, stride * sizeof *sums);
    }
}

INLINE void store_sums(int has_second, float *sums, int64_t stride) {
    _tile_stored(0, sums, stride * sizeof *sums);
    _tile_stored(1, sums + SIDE, stride * sizeof *sums);
    if (has_second) {
        _tile_stored(2, sums + SIDE * stride, stride * sizeof *sums);
        _tile_stored(3, sums + SIDE * stride + SIDE, stride * sizeof *sums);
    }
}

/* The sums += rows `x`, `stride` numbers apart, by a block of DEPTH inputs and TILES outputs at `by`:
   `[input / 2][output][2]`. `x` is read with a hint that it is soon no more needed. */
INLINE void add_products(int has_second, const number *x, int64_t stride, const number *by) {
    enum { PAIRS = 2 * TILES * sizeof(number) }; /* bytes from pair to pair of inputs */
    _tile_loadd(6, by, PAIRS);
    _tile_loadd(7, by + 2 * SIDE, PAIRS);
    _tile_stream_loadd(4, x, stride * sizeof *x);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if (has_second) {
        _tile_stream_loadd(5, x + SIDE * stride, stride * sizeof *x);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
}

#endif
