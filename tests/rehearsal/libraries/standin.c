// See standin.h. The gate is worked by tests, from another thread than the one that waits at it.
#include "standin.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t moved = PTHREAD_COND_INITIALIZER;
static struct {
    char call[16];  // empty: it is open
    int waiting, late;
    struct timespec deadline;
} gate;

void standin_log(const char *format, ...)
{
    static FILE *file;
    pthread_mutex_lock(&turn);
    const char *name = getenv("STANDIN_LOG");
    if (!file && name)
        file = fopen(name, "a");
    if (file) {
        va_list arguments;
        va_start(arguments, format);
        vfprintf(file, format, arguments);
        va_end(arguments);
        fputc('\n', file);
        fflush(file);
    }
    pthread_mutex_unlock(&turn);
}

void standin_pass(const char *call)
{
    pthread_mutex_lock(&turn);
    if (!strcmp(gate.call, call)) {
        gate.waiting = 1;
        pthread_cond_broadcast(&moved);
        while (gate.call[0] && !gate.late)
            gate.late = pthread_cond_timedwait(&moved, &turn, &gate.deadline) != 0;
        gate.call[0] = 0;
        pthread_cond_broadcast(&moved);
    }
    pthread_mutex_unlock(&turn);
}

// Hold the next such call until the gate is opened, or for so many milliseconds.
void standin_close(const char *call, long milliseconds)
{
    pthread_mutex_lock(&turn);
    memset(&gate, 0, sizeof gate);
    strncpy(gate.call, call, sizeof gate.call - 1);
    clock_gettime(CLOCK_REALTIME, &gate.deadline);
    gate.deadline.tv_sec += milliseconds / 1000;
    gate.deadline.tv_nsec += milliseconds % 1000 * 1000000;
    if (gate.deadline.tv_nsec >= 1000000000) {
        gate.deadline.tv_nsec -= 1000000000;
        gate.deadline.tv_sec++;
    }
    pthread_mutex_unlock(&turn);
}

// Return once a call stands at the gate; 0 if none came within the time.
int standin_await(void)
{
    pthread_mutex_lock(&turn);
    int failed = 0;
    while (!gate.waiting && !failed)
        failed = pthread_cond_timedwait(&moved, &turn, &gate.deadline);
    int waiting = gate.waiting;
    pthread_mutex_unlock(&turn);
    return waiting;
}

// Let the call go on; 0 if it had gone on already, as its time was over.
int standin_open(void)
{
    pthread_mutex_lock(&turn);
    int opened = gate.waiting && !gate.late;
    gate.call[0] = 0;
    pthread_cond_broadcast(&moved);
    pthread_mutex_unlock(&turn);
    return opened;
}

void *standin_handle(void)
{
    static long last;
    return (void *)(0x1000 + __atomic_add_fetch(&last, 16, __ATOMIC_RELAXED));
}
