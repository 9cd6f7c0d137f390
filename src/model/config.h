// The shape of a model: what a Hugging Face config.json says.
#ifndef SKYMOE_MODEL_CONFIG_H
#define SKYMOE_MODEL_CONFIG_H

#include <stdbool.h>

#include "base/status.h"
#include "kernels/dtype.h"

enum arch { ARCH_LLAMA, ARCH_MISTRAL, ARCH_MIXTRAL, ARCH_SKYWORK, ARCH_SKYMOE };

// Quantised weights of a folder (quantization_config), and what has a scale of its own: a tensor, an output channel (a
// row), a block of SCALE_BLOCK x SCALE_BLOCK elements.
enum quant { QUANT_NONE, QUANT_FP8 };
enum scaling { SCALING_TENSOR, SCALING_CHANNEL, SCALING_BLOCK };

struct config {
    enum arch arch;
    long D;               // hidden_size
    long F;               // intermediate_size, of one expert in a MoE
    long L;               // num_hidden_layers
    long H;               // num_attention_heads
    long G;               // num_key_value_heads
    long C;               // head_dim (default D / H)
    long V;               // vocab_size
    long E;               // experts; 0: dense
    long K;               // experts per token; 0 when dense
    long max_positions;   // max_position_embeddings
    long window;          // sliding_window in tokens; 0: none
    double norm_eps;      // rms_norm_eps
    double rope_theta;
    double gate_norm_std; // lambda of gating logit normalisation; 0: off
    bool gate_bias;       // experts are chosen by z~ + a bias of each expert (loss-free balancing)
    bool tied;            // tie_word_embeddings: the head is the embedding
    enum dtype dtype;     // torch_dtype: F32, BF16 or F16
    enum quant quant;
    enum scaling scaling; // of quantised weights
    double init_std;      // initializer_range, informational
    long bos, eos, pad;   // token ids; -1: none
    char folder[4096];    // where it was read, for messages
};

// Reads DIR/config.json or a config file itself. ERR_FORMAT names field and value for anything missing, contradictory,
// huge or not implemented (rope_scaling, attention_bias, mlp_bias, other hidden_act or quant_method, moe_2layer_gate,
// interval > 1 ...). Limits: D, F <= 2^20; L, H, G <= 4096; V <= 2^24; E <= 4096; K <= min(E, 64).
MUST_USE enum status config_read(struct config *c, const char *path);
MUST_USE enum status config_parse(struct config *c, const char *text, long bytes, const char *name);

// The config.json of that model as transformers expects it, for its architecture (Skywork: num_experts is a list, moe_*
// keys; K other than 2 is written as architectures SkymoeForCausalLM with skymoe_ keys; docs/formats.md).
// ERR_CONFIG when the architecture cannot say it (gate norm with Mixtral), naming the option. The caller frees *text.
MUST_USE enum status config_write(char **text, const struct config *c);

const char *arch_name(enum arch a); // "LlamaForCausalLM" ...
const char *scaling_name(enum scaling s);                  // "tensor", "channel", "block"
bool scaling_from_name(enum scaling *s, const char *name); // false for other words

// Counts from the shape alone (the parameter table gives the same sum; a test compares them).
long config_params_total(const struct config *c);
long config_params_active(const struct config *c);
// Model FLOPs of one trained token: 6 * (active non-embedding parameters + head) + 6 L H C S (causal half).
double config_train_flops_per_token(const struct config *c, long S);

#endif
