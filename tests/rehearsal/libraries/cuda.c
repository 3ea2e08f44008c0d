// The driver: asked for the device's name alone, which says what this is.
#include <stddef.h>
#include <stdio.h>

int cuDeviceGetName(char *name, int room, int device)
{
    snprintf(name, room, "a rehearsal on stand-in libraries, which compute nothing: no GPU was measured");
    return 0;
}

int cuDeviceTotalMem_v2(size_t *size, int device)
{
    *size = 8ull << 30;
    return 0;
}

int cuDriverGetVersion(int *version)
{
    *version = 13000;
    return 0;
}
