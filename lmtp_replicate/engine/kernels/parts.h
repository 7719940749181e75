/* What decoder.c makes a layer of, beside its linear layers. */

#pragma once

#include "step.h"

void lmtp_rms_norm(number *output, number *x, const number *added, const number *weight,
                   int64_t rows, int64_t dim, float epsilon);
void lmtp_keep(const Step *step);
void lmtp_attend(const Step *step);
void lmtp_attend_long(const Step *step, number *room); /* only with tiles */
void lmtp_gate(number *gate, const number *up, int64_t count);
