/* What number of numbers the other sources take at once. */

#include "vector.h"

const int32_t lmtp_width = WIDTH;
