// The command table's row. One file per command defines its `struct command`; main.c lists them.
#ifndef SKYMOE_CLI_COMMAND_H
#define SKYMOE_CLI_COMMAND_H

#include "base/json.h"
#include "base/setting.h"

struct command {
    const char *name;
    enum status (*run)(int argc, char **argv); // argv[0] is the command's name; prints results to stdout
    const struct settings *settings;           // for help and docs
    bool ranks;                                // several processes work on it together (mpirun)
};

extern const struct command command_prepare, command_train, command_upcycle, command_eval, command_quantize,
    command_generate, command_chat, command_inspect, command_report, command_bench, command_plan, command_launch;

extern const struct command *const commands[];
extern const long commands_n;

// settings_parse, then what every command does: --help, threads, quiet, kernels_init. *done is true when --help was
// shown.
MUST_USE enum status command_start(const struct settings *s, struct common_options *common, bool *set, bool *done,
                                   int argc, char **argv);

// For converting a folder: unless --threads says how many, one fewer than all, for each file that is written has a
// thread of its own, and a kernel whose threads wait for each other would wait for it.
MUST_USE enum status command_threads_beside_writing(const struct common_options *common);

struct trainer;
void print_grid(const struct trainer *t); // --print-grid of train, to stdout

// A command's result as a line on standard output; frees o either way.
MUST_USE enum status command_print_json(struct json_out *o);

#endif
