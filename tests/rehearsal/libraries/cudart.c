// The CUDA runtime on host memory: copies are made at once, kernels are named and not run.
#include "standin.h"

#include <cuda_runtime_api.h>
#include <stdlib.h>
#include <string.h>

static const char *const KINDS[] = {"HtoH", "HtoD", "DtoH", "DtoD", "any"};

// The device: a Hopper of 8 GiB.

cudaError_t cudaGetDeviceCount(int *count)
{
    *count = 1;
    return cudaSuccess;
}

cudaError_t cudaGetDevice(int *device)
{
    *device = 0;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int device)
{
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *found, int device)
{
    *found = (struct cudaDeviceProp){
        .name = "stand-in",
        .major = 9,
        .warpSize = 32,
        .totalGlobalMem = 8ull << 30,
        .multiProcessorCount = 132,
        .maxThreadsPerBlock = 1024,
        .maxThreadsPerMultiProcessor = 2048,
        .sharedMemPerBlock = 49152,
        .sharedMemPerBlockOptin = 232448,
        .sharedMemPerMultiprocessor = 233472,
        .regsPerBlock = 65536,
        .regsPerMultiprocessor = 65536,
        .l2CacheSize = 50 << 20,
        .maxThreadsDim = {1024, 1024, 64},
        .maxGridSize = {2147483647, 65535, 65535},
    };
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr what, int device)
{
    switch (what) {
    case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
    case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
    case cudaDevAttrMultiProcessorCount: *value = 132; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = 232448; break;
    case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = 2048; break;
    default: *value = 1;
    }
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version)
{
    *version = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *version)
{
    *version = CUDART_VERSION;
    return cudaSuccess;
}

const char *cudaGetErrorString(cudaError_t error)
{
    return "an error of the stand-in";
}

const char *cudaGetErrorName(cudaError_t error)
{
    return "cudaErrorStandIn";
}

// Memory: all of it is the host's, and starts as zeros, so that a run is the same each time.

static cudaError_t allocate(void **memory, size_t size)
{
    size = (size + 256) & ~(size_t)255;
    *memory = aligned_alloc(256, size);
    if (!*memory)
        return cudaErrorMemoryAllocation;
    memset(*memory, 0, size);
    return cudaSuccess;
}

cudaError_t cudaMalloc(void **memory, size_t size)
{
    standin_log("cudaMalloc %zu", size);
    return allocate(memory, size);
}

cudaError_t cudaHostAlloc(void **memory, size_t size, unsigned flags)
{
    standin_log("cudaHostAlloc %zu", size);
    return allocate(memory, size);
}

cudaError_t cudaMallocHost(void **memory, size_t size)
{
    standin_log("cudaMallocHost %zu", size);
    return allocate(memory, size);
}

cudaError_t cudaMallocFromPoolAsync(void **memory, size_t size, cudaMemPool_t pool, cudaStream_t stream)
{
    standin_log("cudaMallocFromPoolAsync %zu", size);
    return allocate(memory, size);
}

cudaError_t cudaFree(void *memory)
{
    free(memory);
    return cudaSuccess;
}

cudaError_t cudaFreeHost(void *memory)
{
    free(memory);
    return cudaSuccess;
}

cudaError_t cudaFreeAsync(void *memory, cudaStream_t stream)
{
    free(memory);
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *left, size_t *total)
{
    *left = 7ull << 30;
    *total = 8ull << 30;
    return cudaSuccess;
}

cudaError_t cudaMemPoolCreate(cudaMemPool_t *pool, const struct cudaMemPoolProps *asked)
{
    *pool = standin_handle();
    return cudaSuccess;
}

cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t pool, enum cudaMemPoolAttr what, void *value)
{
    *(long long *)value = 0;
    return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *found, const void *memory)
{
    *found = (struct cudaPointerAttributes){.type = cudaMemoryTypeDevice};
    return cudaSuccess;
}

// Graphs. A copy from the host that is recorded reads the host again whenever it is played: "stale" is written down
// where something else stands there by then.

static void *capturing;  // the graph that is recorded
static struct {
    void *graph, *kept;
    const void *from;
    size_t size;
} captured[4096];
static int count;

static void capture(const void *from, size_t size, enum cudaMemcpyKind kind)
{
    if (!capturing || kind != cudaMemcpyHostToDevice || count == sizeof captured / sizeof *captured)
        return;
    captured[count].graph = capturing;
    captured[count].from = from;
    captured[count].size = size;
    captured[count].kept = memcpy(malloc(size), from, size);
    count++;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode)
{
    standin_log("cudaStreamBeginCapture");
    capturing = standin_handle();
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph)
{
    standin_log("cudaStreamEndCapture");
    *graph = capturing;
    capturing = NULL;
    return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status)
{
    *status = capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *made, cudaGraph_t graph, unsigned long long flags)
{
    standin_log("cudaGraphInstantiate");
    *made = (cudaGraphExec_t)graph;
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream)
{
    standin_log("cudaGraphLaunch");
    for (int each = 0; each < count; each++)
        if (captured[each].graph == graph && memcmp(captured[each].from, captured[each].kept, captured[each].size))
            standin_log("stale %zu", captured[each].size);
    return cudaSuccess;
}

// Copies.

cudaError_t cudaMemcpy(void *to, const void *from, size_t size, enum cudaMemcpyKind kind)
{
    standin_log("cudaMemcpy %s %zu", KINDS[kind], size);
    standin_pass(KINDS[kind]);
    memmove(to, from, size);
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, enum cudaMemcpyKind kind, cudaStream_t stream)
{
    standin_log("cudaMemcpyAsync %s %zu", KINDS[kind], size);
    capture(from, size, kind);
    standin_pass(KINDS[kind]);
    memmove(to, from, size);
    return cudaSuccess;
}

cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                              size_t height, enum cudaMemcpyKind kind, cudaStream_t stream)
{
    standin_log("cudaMemcpy2DAsync %s %zu", KINDS[kind], width * height);
    standin_pass(KINDS[kind]);
    for (size_t row = 0; row < height; row++)
        memmove((char *)to + row * to_pitch, (const char *)from + row * from_pitch, width);
    return cudaSuccess;
}

cudaError_t cudaMemcpyFromSymbol(void *to, const void *symbol, size_t size, size_t offset, enum cudaMemcpyKind kind)
{
    standin_log("cudaMemcpyFromSymbol %zu", size);
    memset(to, 0, size);
    return cudaSuccess;
}

cudaError_t cudaMemset(void *memory, int value, size_t size)
{
    standin_log("cudaMemset %zu", size);
    memset(memory, value, size);
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *memory, int value, size_t size, cudaStream_t stream)
{
    standin_log("cudaMemsetAsync %zu", size);
    memset(memory, value, size);
    return cudaSuccess;
}

// Streams, events.

cudaError_t cudaStreamCreate(cudaStream_t *stream)
{
    *stream = standin_handle();
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags)
{
    *stream = standin_handle();
    return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t *event)
{
    *event = standin_handle();
    return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags)
{
    *event = standin_handle();
    return cudaSuccess;
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *data)
{
    standin_log("cudaLaunchHostFunc");
    function(data);
    return cudaSuccess;
}

// Kernels: what nvcc's code calls to register and launch them.

static struct {
    const void *function;
    const char *name;
} kernels[100000];
static int known;

void **__cudaRegisterFatBinary(void *binary)
{
    static void *handle;
    return &handle;
}

void __cudaRegisterFunction(void **binary, const char *function, char *device, const char *name, int limit,
                            void *thread, void *block, void *block_size, void *grid_size, int *warp)
{
    if (known < (int)(sizeof kernels / sizeof *kernels)) {
        kernels[known].function = function;
        kernels[known++].name = name;
    }
}

static cudaError_t launch(const void *function)
{
    const char *name = "?";
    for (int each = 0; each < known; each++)
        if (kernels[each].function == function)
            name = kernels[each].name;
    standin_log("launch %.200s", name);
    return cudaSuccess;
}

cudaError_t cudaLaunchKernel(const void *function, dim3 grid, dim3 block, void **arguments, size_t shared,
                             cudaStream_t stream)
{
    return launch(function);
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *asked, const void *function, void **arguments)
{
    return launch(function);
}

cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void **arguments, size_t shared,
                               cudaStream_t stream)
{
    return launch(kernel);
}

cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *function)
{
    *kernel = (cudaKernel_t)function;
    return cudaSuccess;
}

static __thread struct {
    dim3 grid, block;
    size_t shared;
    void *stream;
} pushed;

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void *stream)
{
    pushed.grid = grid;
    pushed.block = block;
    pushed.shared = shared;
    pushed.stream = stream;
    return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream)
{
    *grid = pushed.grid;
    *block = pushed.block;
    *shared = pushed.shared;
    *(void **)stream = pushed.stream;
    return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *found, const void *function)
{
    *found = (struct cudaFuncAttributes){.maxThreadsPerBlock = 1024};
    return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *count, const void *function, int block,
                                                                   size_t shared, unsigned flags)
{
    *count = 2;
    return cudaSuccess;
}

cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned version,
                                             unsigned long long flags, enum cudaDriverEntryPointQueryResult *status)
{
    *function = NULL;
    if (status)
        *status = cudaDriverEntryPointSymbolNotFound;
    return cudaSuccess;
}
