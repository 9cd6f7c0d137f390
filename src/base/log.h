// What people see (stderr). Results go to stdout and are printed by cli/ alone.
#ifndef SKYMOE_BASE_LOG_H
#define SKYMOE_BASE_LOG_H

#include <stdbool.h>

void log_quiet(bool quiet);
void log_line(const char *format, ...) __attribute__((format(printf, 1, 2)));    // hidden by --quiet
void log_warning(const char *format, ...) __attribute__((format(printf, 1, 2))); // "warning: ...", never hidden
void log_error(const char *format, ...) __attribute__((format(printf, 1, 2)));   // as it is, never hidden; main's

// What stands before the sentence when a signal ends the process: "skymoe eval". Must outlive it.
void log_prefix(const char *program, const char *command);
const char *log_command(void); // as told to log_prefix; "" before
// One line "PREFIX: OBJECT: WHAT", and the process is gone with exit code 1. For signal handlers.
void log_last_words(const char *object, const char *what) __attribute__((noreturn));

// Progress with rate and time left: one line that rewrites itself on a terminal, a plain line every few seconds
// otherwise. Units are whatever `unit` says ("tokens", "MB").
struct progress {
    const char *what;
    const char *unit;
    double total;
    double started, shown; // seconds, monotonic
};
struct progress progress_start(const char *what, const char *unit, double total);
void progress_at(struct progress *p, double done, const char *note); // note may be NULL: "loss 5.31"
void progress_end(struct progress *p, const char *note);

double seconds_now(void);    // monotonic
long resident_bytes(void);   // this process now
long resident_peak(void);    // at most since the start or resident_peak_restart; 0 where the system does not say
void resident_peak_restart(void);

#endif
