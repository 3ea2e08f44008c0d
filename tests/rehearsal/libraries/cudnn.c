// cuDNN: handles, sizes that fit, and weights that are where they were put. Declared by hand: its headers are large.
#include "standin.h"

static int made(void **handle)
{
    *handle = standin_handle();
    return 0;
}

size_t cudnnGetVersion(void)
{
    return 92800;
}

const char *cudnnGetErrorString(int error)
{
    return "an error of the stand-in";
}

int cudnnCreate(void **handle)
{
    return made(handle);
}

int cudnnCreateTensorDescriptor(void **handle)
{
    return made(handle);
}

int cudnnCreateRNNDataDescriptor(void **handle)
{
    return made(handle);
}

int cudnnCreateFilterDescriptor(void **handle)
{
    return made(handle);
}

int cudnnCreateDropoutDescriptor(void **handle)
{
    return made(handle);
}

int cudnnCreateRNNDescriptor(void **handle)
{
    return made(handle);
}

int cudnnDropoutGetStatesSize(void *handle, size_t *size)
{
    *size = 1024;
    return 0;
}

int cudnnGetRNNTempSpaceSizes(void *handle, void *rnn, int mode, void *data, size_t *work, size_t *reserve)
{
    *work = 4096;
    *reserve = 0;
    return 0;
}

int cudnnGetRNNWeightParams(void *handle, void *rnn, int layer, size_t size, const void *weights, int which,
                            void *matrix, void **matrix_at, void *bias, void **bias_at)
{
    *matrix_at = *bias_at = (void *)weights;
    return 0;
}

int cudnnGetTensorNdDescriptor(void *tensor, int asked, int *type, int *rank, int *sizes, int *strides)
{
    *type = 0;
    *rank = 3;
    for (int axis = 0; axis < 3; axis++)
        sizes[axis] = strides[axis] = 1;
    return 0;
}

int cudnnBackendCreateDescriptor(int kind, void **handle)
{
    return made(handle);
}

// One engine of each plan, without a workspace and without notes (kinds 11 and 19 are lists that are empty).
int cudnnBackendGetAttribute(void *descriptor, int name, int kind, long long asked, long long *count, void *value)
{
    standin_log("cudnnBackendGetAttribute %d %d %lld", name, kind, asked);
    if (count)
        *count = kind != 11 && kind != 19;
    if (value && asked > 0) {
        if (kind == 3)  // CUDNN_TYPE_INT64
            *(long long *)value = 0;
        if (kind == 9 || kind == 23)
            *(int *)value = 0;
    }
    return 0;
}
