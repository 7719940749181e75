/* The best id of each row of logits, its log probability, and the logarithm of the sum of all
   exponentials. Compiled and called by compiled_choice.py.

   torch needs half a dozen operators for that, each of which goes over all rows. */

#include <math.h>

#include "vector.h"

enum { RUN = 32 * WIDTH }; /* numbers whose exponentials are added up by themselves, for exactness */

/* What stands in the place of numbers beyond a row's end. */
#define NOTHING (-INFINITY)

INLINE vec numbers_at(const float *row, int64_t i, int64_t count) {
    if (i + WIDTH <= count) return load(row + i);
    vec last = all(NOTHING);
    for (int64_t k = i; k < count; k++) last[k - i] = row[k];
    return last;
}

static float highest_of(const float *row, int64_t count) {
    vec highest = all(NOTHING);
    for (int64_t i = 0; i < count; i += WIDTH) highest = larger(highest, numbers_at(row, i, count));
    return largest_of(highest);
}

/* The sum of e^(number - highest). Not a number if one of them is none, or infinite. */
static float sum_below(const float *row, int64_t count, float highest) {
    float sum = 0;
    for (int64_t from = 0; from < count; from += RUN) {
        const int64_t end = from + RUN < count ? from + RUN : count;
        vec here = all(0);
        for (int64_t i = from; i < end; i += WIDTH)
            here += exponential(numbers_at(row, i, count) - highest);
        sum += sum_of(here);
    }
    return sum;
}

/* The logarithm of a row of nothing but -inf, or numbers that are none: the former or the latter. */
static float nothing_in(const float *row, int64_t count) {
    float sum = NOTHING;
    for (int64_t i = 0; i < count; i++) sum += row[i];
    return sum;
}

/* `logits`: [row][count], rows `stride` numbers apart. `found`: [row][3], the best id, the logarithm of
   its share, and that of the sum. Of equal ids the lowest is the best; a row of nothing but -inf has
   the logarithm -inf. */
void lmtp_choice(const float *logits, int64_t rows, int64_t count, int64_t stride, double *found) {
#pragma omp parallel for if (rows > 1)
    for (int64_t r = 0; r < rows; r++) {
        const float *row = logits + r * stride, highest = highest_of(row, count);
        int64_t id = 0;
        while (id + 1 < count && row[id] != highest) id++;
        if (row[id] != highest) id = 0;
        const float logarithm = highest == NOTHING ? nothing_in(row, count)
                                                   : highest + logf(sum_below(row, count, highest));
        found[3 * r] = id;
        found[3 * r + 1] = (double)row[id] - logarithm;
        found[3 * r + 2] = logarithm;
    }
}
