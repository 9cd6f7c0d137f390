// Two kinds of failure, never mixed.
//
// The world is wrong (a file, a setting, a peer): the function returns a status and stores one sentence,
// `object: what is wrong (what to do)`. main() alone prints it and chooses the exit code.
// The program is wrong: CHECK prints the condition and aborts. Nothing a file or a request contains may reach a CHECK.
#ifndef SKYMOE_BASE_STATUS_H
#define SKYMOE_BASE_STATUS_H

enum status {
    OK = 0,
    ERR_IO,     // the operating system refused: missing file, full disk, failed write
    ERR_FORMAT, // something that was read is malformed or contradicts something else that was read
    ERR_CONFIG, // the command line, the --config file or the world size is wrong (the only status with exit code 2)
    ERR_MEMORY, // an allocation was refused
    ERR_COMM,   // another rank is late or gone
    ERR_DEVICE, // the accelerator refused
};

#define MUST_USE __attribute__((warn_unused_result))

// Stores the sentence for this thread and returns `code`, so that `return fail(ERR_IO, "%s: ...", path)` reads well.
// A later failure replaces an earlier one.
enum status fail(enum status code, const char *format, ...) __attribute__((format(printf, 2, 3), cold));

// The sentence of the last failure of this thread; "" when there was none. Valid until the next fail().
const char *fail_message(void);

// For memory that kernels need on the way: they return nothing, so a refusal ends the program here, with the sentence
// and exit code 1. What is on the disk is whole at any instruction (base/files.h).
void memory_refused(const char *what, long bytes) __attribute__((noreturn, cold));

// Only where nothing is held: a function that holds something is split into an outer part (acquire, call, release)
// and an inner one.
#define TRY(call)                                                                                                      \
    do {                                                                                                               \
        enum status try_status_ = (call);                                                                              \
        if (try_status_ != OK) return try_status_;                                                                     \
    } while (0)

// Always on, in every build.
#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (__builtin_expect(!(condition), 0)) check_failed(#condition, __FILE__, __LINE__);                           \
    } while (0)
void check_failed(const char *condition, const char *file, int line) __attribute__((noreturn, cold));

#endif
