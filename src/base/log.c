#include "base/log.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static bool quiet;
static bool line_open; // an unfinished progress line is on the terminal

void log_quiet(bool value)
{
    quiet = value;
}

static void print_line(const char *prefix, const char *format, va_list args)
{
    char text[2048];
    vsnprintf(text, sizeof text, format, args);
    fprintf(stderr, "%s%s%s\n", line_open ? "\r\033[K" : "", prefix, text); // one call: lines of threads stay whole
    line_open = false;
}

void log_line(const char *format, ...)
{
    if (quiet) return;
    va_list args;
    va_start(args, format);
    print_line("", format, args);
    va_end(args);
}

void log_warning(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    print_line("warning: ", format, args);
    va_end(args);
}

void log_error(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    print_line("", format, args);
    va_end(args);
}

// ---- the end ----

static const char *prefix[2] = {"skymoe", ""};

void log_prefix(const char *program, const char *command)
{
    prefix[0] = program;
    prefix[1] = command;
}

const char *log_command(void)
{
    return prefix[1];
}

void log_last_words(const char *object, const char *what)
{
    const char *part[] = {line_open ? "\r\033[K" : "", prefix[0], *prefix[1] ? " " : "", prefix[1], ": ", object, ": ",
                          what, "\n"};
    enum { PARTS = sizeof part / sizeof *part };
    struct iovec text[PARTS];
    for (int i = 0; i < PARTS; i++) text[i] = (struct iovec){(void *)(uintptr_t)part[i], strlen(part[i])};
    ssize_t ignored = writev(STDERR_FILENO, text, PARTS);
    (void)ignored;
    _exit(1);
}

// ---- progress ----

struct progress progress_start(const char *what, const char *unit, double total)
{
    double now = seconds_now();
    return (struct progress){.what = what, .unit = unit, .total = total, .started = now, .shown = now};
}

// 1234567 -> "1.23 M": three digits that matter.
static void print_amount(char *text, size_t room, double x)
{
    static const char *const suffix[] = {"", " k", " M", " G", " T", " P"};
    int step = 0;
    while (step < 5 && x >= 999.5) {
        x /= 1000;
        step++;
    }
    int digits = x >= 99.95 ? 0 : x >= 9.995 ? 1 : 2;
    if (step == 0 && x == (double)(long)x) digits = 0;
    snprintf(text, room, "%.*f%s", digits, x, suffix[step]);
}

static void print_duration(char *text, size_t room, double seconds)
{
    long s = seconds > 1e9 ? 1000000000 : (long)(seconds + 0.5);
    if (s < 60) snprintf(text, room, "%ld s", s);
    else if (s < 3600) snprintf(text, room, "%ld min %02ld s", s / 60, s % 60);
    else snprintf(text, room, "%ld h %02ld min", s / 3600, s / 60 % 60);
}

static void progress_text(char *text, size_t room, const struct progress *p, double done, double now, const char *note)
{
    char amount[32], total[32] = "", rate[32], left[64] = "", duration[48];
    double elapsed = now - p->started;
    double per_second = elapsed > 0 ? done / elapsed : 0;
    print_amount(amount, sizeof amount, done);
    print_amount(rate, sizeof rate, per_second);
    if (p->total > 0) {
        print_amount(total, sizeof total, p->total);
        if (per_second > 0 && done < p->total) {
            print_duration(duration, sizeof duration, (p->total - done) / per_second);
            snprintf(left, sizeof left, ", %s left", duration);
        }
        snprintf(text, room, "%s: %3.0f%%, %s of %s %s, %s %s/s%s%s%s", p->what, 100 * done / p->total, amount, total,
                 p->unit, rate, p->unit, left, note ? ", " : "", note ? note : "");
    } else {
        snprintf(text, room, "%s: %s %s, %s %s/s%s%s", p->what, amount, p->unit, rate, p->unit, note ? ", " : "",
                 note ? note : "");
    }
}

static bool on_terminal(void)
{
    static int known = -1;
    if (known < 0) known = isatty(STDERR_FILENO) ? 1 : 0;
    return known == 1;
}

static int terminal_columns(void)
{
    struct winsize size;
    if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col < 20) return 80;
    return size.ws_col;
}

void progress_at(struct progress *p, double done, const char *note)
{
    if (quiet) return;
    double now = seconds_now();
    if (now - p->shown < (on_terminal() ? 0.2 : 5.0)) return;
    p->shown = now;
    char text[512];
    progress_text(text, sizeof text, p, done, now, note);
    if (on_terminal()) {
        fprintf(stderr, "\r\033[K%.*s", terminal_columns() - 1, text); // a longer line could not be rewritten
        line_open = true;
    } else {
        fprintf(stderr, "%s\n", text);
    }
}

void progress_end(struct progress *p, const char *note)
{
    if (quiet) return;
    char duration[48];
    double elapsed = seconds_now() - p->started;
    if (elapsed < 10) snprintf(duration, sizeof duration, "%.1f s", elapsed);
    else print_duration(duration, sizeof duration, elapsed);
    log_line("%s: done in %s%s%s", p->what, duration, note ? ", " : "", note ? note : "");
}

// ---- this process ----

double seconds_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

long resident_bytes(void)
{
    long pages = 0;
    FILE *f = fopen("/proc/self/statm", "re");
    if (!f) return 0;
    if (fscanf(f, "%*s %ld", &pages) != 1) pages = 0;
    fclose(f);
    return pages * sysconf(_SC_PAGESIZE);
}

long resident_peak(void)
{
    char line[256];
    long kib = 0;
    FILE *f = fopen("/proc/self/status", "re");
    if (!f) return 0;
    while (fgets(line, sizeof line, f))
        if (!strncmp(line, "VmHWM:", 6)) kib = strtol(line + 6, NULL, 10);
    fclose(f);
    return kib * 1024;
}

void resident_peak_restart(void)
{
    FILE *f = fopen("/proc/self/clear_refs", "r+e");
    if (!f) return; // then the peak is that since the start
    fputs("5", f);
    fclose(f);
}
