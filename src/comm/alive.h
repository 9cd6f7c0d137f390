// Who lives, and who keeps the others waiting. Each rank of a job keeps RUN/alive/<rank>: host, process, step, phase, a
// counter that moves with its work, and the rank it waits for. A wait that outlives the patience follows those waits to
// the rank at their end; if that rank's counter still moves the wait goes on, else it is named and the job ends.
#ifndef SKYMOE_COMM_ALIVE_H
#define SKYMOE_COMM_ALIVE_H

#include <stdbool.h>

#include "base/status.h"

enum phase {
    PHASE_START, PHASE_LOAD, PHASE_FORWARD, PHASE_EXCHANGE, PHASE_BACKWARD, PHASE_REDUCE, PHASE_OPTIMIZER, PHASE_SAVE,
    PHASE_EVALUATE, PHASES
};

// After transport_open; a world of one keeps no file. All ranks call it: rank 0 makes the folder.
MUST_USE enum status alive_open(const char *run);
void alive_close(void); // removes this rank's file

// Work moves on. Cheap: the file is written when the step changes, else at most once a second, or ten times when the
// phase does; a rank that dies within a tenth of a second may be named with the phase before.
// Test builds do here what SKYMOE_FAULT=phase:step:rank:kill|stop|sleep[:n] asks for, at the n-th call in that phase.
void alive_phase(enum phase p);
enum phase alive_phase_now(void);
void alive_step(long step);
void alive_beat(void);

// To be called about every second of a wait for `rank`. Ends the job when the rank at the end of the waits has not
// moved for `patience` seconds of this wait.
void alive_judge(long rank, double patience);
// This process waits for `rank` (-1: no longer): written at most once a second, and no progress.
void alive_waits(long rank);
// What a rank's file says, for whoever watches a job from outside.
struct heart {
    long pid, step, counter, waits;
    char phase[16], host[256];
};
bool alive_read(struct heart *h, const char *run, long rank); // false where there is none
// True for the first process of the job that asks: it may say why the job ends.
bool alive_first_word(void);

#endif
