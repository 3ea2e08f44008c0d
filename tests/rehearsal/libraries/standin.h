// What the stand-in libraries share: every call is written down, and a copy can be held at a gate.
#pragma once
#include <stddef.h>

// A line in the file that STANDIN_LOG names; none if it names none.
void standin_log(const char *format, ...);

// Waits while the gate is closed for such calls.
void standin_pass(const char *call);

// A handle that is not null.
void *standin_handle(void);
