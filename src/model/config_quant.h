// quantization_config of a config.json: how a folder's FP8 weights are scaled (docs/formats.md).
#ifndef SKYMOE_MODEL_CONFIG_QUANT_H
#define SKYMOE_MODEL_CONFIG_QUANT_H

#include <stdio.h>

#include "base/json.h"
#include "model/config.h"

// c->quant and c->scaling, from the whole config; ERR_FORMAT names field and value. Which tensors are FP8 is read off
// the tensors, so lists of layers left out are not looked at.
MUST_USE enum status quantization_read(struct config *c, const cJSON *json, const char *name);

// `"quantization_config": ...` after a comma, or nothing.
void quantization_write(FILE *o, const struct config *c);

#endif
