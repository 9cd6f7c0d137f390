// Refuses what a program asks of the system, one request at a time: memory (also for the C++ library and cJSON) and
// everything that is done with files. Requests are numbered in the order in which the process makes them; a recording
// run finds out which of them come from places in the code that no earlier one came from.
//
// faults.c defines malloc and its relatives for the whole process, and takes the place of the calls listed in the
// Makefile (FAULT_CALLS) in everything that is linked into the test program itself.
#ifndef SKYMOE_TESTS_FAULTS_H
#define SKYMOE_TESTS_FAULTS_H

#include <stdbool.h>

enum { FAULT_PLACES = 1 << 14, FAULT_FRAMES = 24 };

enum fault_mode {
    FAULTS_OFF,
    FAULTS_RECORD,  // requests are granted, places noted
    FAULTS_ONCE,    // the request `refuse` is refused
    FAULTS_FROM_ON, // and all later ones: a disk that stays full, memory that stays short
};

struct faults { // shared between the test and the process that runs a command
    enum fault_mode mode;
    long refuse;                // from 1
    long requests;              // so far
    bool refused;               // it happened
    const char *name;           // of the call that was refused first
    long places;
    long place[FAULT_PLACES];   // recorded: number of the first request from each place
    int frames;
    void *frame[FAULT_FRAMES];  // who made the refused request
};

void faults_use(struct faults *f); // NULL: grant everything
void faults_print(const struct faults *f); // the refused request and its stack, on stderr

#endif
