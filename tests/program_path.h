// Where the program is that tests call: SKYMOE names it; without that it is the one beside this test's build.
#ifndef SKYMOE_TESTS_PROGRAM_PATH_H
#define SKYMOE_TESTS_PROGRAM_PATH_H

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/files.h"

static char program[PATH_LENGTH];

static __attribute__((unused)) bool find_program(void)
{
    const char *named = getenv("SKYMOE");
    if (named) return realpath(named, program) != NULL;
    ssize_t n = readlink("/proc/self/exe", program, sizeof program - 16);
    if (n < 0) return false;
    program[n] = '\0';
    for (int up = 0; up < 2; up++) *strrchr(program, '/') = '\0';
    memcpy(program + strlen(program), "/skymoe", sizeof "/skymoe");
    return access(program, X_OK) == 0;
}

#endif
