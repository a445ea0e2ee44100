/* A stand-in for libnvidia-ml.so.1 that plays back power traces with a known integral.

   The file named by STANDIN_NVML says what to play, one directive a line; times are seconds since
   `epoch`, which is nanoseconds of CLOCK_MONOTONIC. Power is piecewise linear, so its integral is
   exact; `standin_energy_j` tells it, after `standin_load`, and is the oracle of the tests.

     epoch NS | tick S | part S | mean S | latency_us N          the sensors of all GPUs
     gpu UUID NAME                                               a GPU; what follows is about it
     seg LENGTH_S FROM_W TO_W | loop                             its power; the last value holds on
     gain G | reset FILE | lost FILE | nocounter | nofields | mig UUID SLICES

   The counter shows, at each tick, the energy until then; with `part` it integrates only that part
   before each tick and takes it for the whole. It starts anew when FILE of `reset` appears; the GPU
   is lost for as long as FILE of `lost` exists. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define MAX_GPUS 8
#define MAX_SEGMENTS 4096
#define MAX_MIGS 7
enum { OK = 0, INVALID = 2, UNSUPPORTED = 3, NOT_FOUND = 6, LOST = 15 };

typedef struct { double length, from, to; } Segment;
typedef struct { char uuid[96]; int slices, owner; } Mig;
typedef struct {
  char uuid[96], name[96], reset_file[256], lost_file[256];
  Segment segments[MAX_SEGMENTS];
  int count, loop, no_counter, no_fields, migs, index;
  double gain, reset;
  Mig mig[MAX_MIGS];
} Gpu;

static Gpu gpus[MAX_GPUS];
static int gpu_count = -1;
static double epoch_ns, tick_s = 0.1, part_s = 0, mean_s = 1.0;
static long latency_us = 0;

void standin_load(const char *path) {
  gpu_count = 0;
  FILE *file = path ? fopen(path, "r") : NULL;
  if (!file) return;
  char line[512], word[32], a[96], b[96];
  while (fgets(line, sizeof line, file)) {
    double x = 0, y = 0, z = 0;
    if (sscanf(line, "%31s", word) != 1) continue;
    Gpu *gpu = gpu_count ? &gpus[gpu_count - 1] : NULL;
    int numbers = sscanf(line, "%*s %lf %lf %lf", &x, &y, &z);
    (void)numbers;
    if (!strcmp(word, "epoch")) epoch_ns = x;
    else if (!strcmp(word, "tick")) tick_s = x;
    else if (!strcmp(word, "part")) part_s = x;
    else if (!strcmp(word, "mean")) mean_s = x;
    else if (!strcmp(word, "latency_us")) latency_us = (long)x;
    else if (!strcmp(word, "gpu") && sscanf(line, "%*s %95s %95s", a, b) == 2) {
      gpu = &gpus[gpu_count];
      memset(gpu, 0, sizeof *gpu);
      gpu->index = gpu_count++;
      strcpy(gpu->uuid, a);
      strcpy(gpu->name, b);
      gpu->gain = 1;
      gpu->reset = 1e18;
    } else if (!gpu) continue;
    else if (!strcmp(word, "seg")) gpu->segments[gpu->count++] = (Segment){x, y, z};
    else if (!strcmp(word, "loop")) gpu->loop = 1;
    else if (!strcmp(word, "gain")) gpu->gain = x;
    else if (!strcmp(word, "reset")) sscanf(line, "%*s %255s", gpu->reset_file);
    else if (!strcmp(word, "lost")) sscanf(line, "%*s %255s", gpu->lost_file);
    else if (!strcmp(word, "nocounter")) gpu->no_counter = 1;
    else if (!strcmp(word, "nofields")) gpu->no_fields = 1;
    else if (!strcmp(word, "mig") && sscanf(line, "%*s %95s %lf", a, &x) == 2) {
      Mig *mig = &gpu->mig[gpu->migs++];
      strcpy(mig->uuid, a);
      mig->slices = (int)x;
      mig->owner = gpu->index;
    }
  }
  fclose(file);
}

static void load(void) {
  if (gpu_count < 0) standin_load(getenv("STANDIN_NVML"));
}

static double now_s(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (t.tv_sec * 1e9 + t.tv_nsec - epoch_ns) / 1e9;
}

/* Joules from 0 to t; before 0 the first power holds, after the end the last one. */
static double energy(const Gpu *gpu, double t) {
  if (gpu->count == 0) return 0;
  if (t <= 0) return t * gpu->segments[0].from;
  double total = 0, length = 0, cycle = 0;
  for (int i = 0; i < gpu->count; i++) {
    length += gpu->segments[i].length;
    cycle += gpu->segments[i].length * (gpu->segments[i].from + gpu->segments[i].to) / 2;
  }
  if (gpu->loop) {
    double rounds = floor(t / length);
    total = rounds * cycle;
    t -= rounds * length;
  }
  for (int i = 0; i < gpu->count; i++) {
    const Segment *s = &gpu->segments[i];
    if (t < s->length) return total + t * s->from + t * t / s->length * (s->to - s->from) / 2;
    total += s->length * (s->from + s->to) / 2;
    t -= s->length;
  }
  return total + t * gpu->segments[gpu->count - 1].to;
}

double standin_energy_j(int index, double from_ns, double to_ns) {
  load();
  return energy(&gpus[index], (to_ns - epoch_ns) / 1e9) -
         energy(&gpus[index], (from_ns - epoch_ns) / 1e9);
}

/* What the counter has integrated by its tick at or before t. */
static double counted(const Gpu *gpu, double t) {
  double tick = floor(t / tick_s) * tick_s;
  if (part_s <= 0) return energy(gpu, tick);
  double total = 0;
  for (double end = tick_s; end <= tick + tick_s / 2; end += tick_s)
    total += (energy(gpu, end) - energy(gpu, end - part_s)) * tick_s / part_s;
  return total;
}

static double mean_w(const Gpu *gpu, double t, double window) {
  double tick = floor(t / tick_s) * tick_s;
  return (energy(gpu, tick) - energy(gpu, tick - window)) / window * gpu->gain;
}

static int gone(const Gpu *gpu) {
  return *gpu->lost_file && access(gpu->lost_file, F_OK) == 0;
}

static void wait_latency(void) {
  if (latency_us) usleep(latency_us);
}

static int text(const char *from, char *to, unsigned length) {
  if (strlen(from) + 1 > length) return INVALID;
  strcpy(to, from);
  return OK;
}

int nvmlInitWithFlags(unsigned flags) { (void)flags; load(); return OK; }
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int code) { return code == LOST ? "GPU is lost" : "stand-in error"; }
int nvmlSystemGetDriverVersion(char *to, unsigned length) { return text("stand-in", to, length); }
int nvmlDeviceGetCount_v2(unsigned *count) { load(); *count = gpu_count; return OK; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
  if ((int)index >= gpu_count) return INVALID;
  *device = &gpus[index];
  return OK;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
  for (int i = 0; i < gpu_count; i++) {
    if (!strcmp(gpus[i].uuid, uuid)) {
      *device = &gpus[i];
      return gone(&gpus[i]) ? LOST : OK;
    }
    for (int j = 0; j < gpus[i].migs; j++)
      if (!strcmp(gpus[i].mig[j].uuid, uuid)) { *device = &gpus[i].mig[j]; return OK; }
  }
  return NOT_FOUND;
}

/* A GPU and a MIG handle both begin with their uuid. */
int nvmlDeviceGetUUID(void *device, char *to, unsigned length) { return text(device, to, length); }
int nvmlDeviceGetName(Gpu *gpu, char *to, unsigned length) { return text(gpu->name, to, length); }
int nvmlDeviceGetEnforcedPowerLimit(Gpu *gpu, unsigned *mw) { (void)gpu; *mw = 700000; return OK; }
int nvmlDeviceGetArchitecture(Gpu *gpu, unsigned *kind) { (void)gpu; *kind = 9; return OK; }

int nvmlDeviceGetTotalEnergyConsumption(Gpu *gpu, unsigned long long *mj) {
  wait_latency();
  if (gpu->no_counter) return UNSUPPORTED;
  if (gone(gpu)) return LOST;
  double t = now_s(), joules = counted(gpu, t) + 1e6;
  if (gpu->reset > t && *gpu->reset_file && access(gpu->reset_file, F_OK) == 0) gpu->reset = t;
  if (t >= gpu->reset) joules = counted(gpu, t) - counted(gpu, gpu->reset);
  *mj = (unsigned long long)(joules * gpu->gain * 1e3);
  return OK;
}

int nvmlDeviceGetPowerUsage(Gpu *gpu, unsigned *mw) {
  if (gone(gpu)) return LOST;
  *mw = (unsigned)(mean_w(gpu, now_s(), mean_s) * 1e3);
  return OK;
}

typedef struct {
  unsigned field, scope;
  long long timestamp, latency;
  unsigned type;
  int code;
  union { double d; unsigned ui; unsigned long long ull; } value;
} FieldValue;

int nvmlDeviceGetFieldValues(Gpu *gpu, int count, FieldValue *values) {
  if (gpu->no_fields) return UNSUPPORTED;
  if (gone(gpu)) return LOST;
  for (int i = 0; i < count; i++) {
    values[i].code = OK;
    if (values[i].field == 185) values[i].value.ui = (unsigned)(mean_w(gpu, now_s(), mean_s) * 1e3);
    else if (values[i].field == 186) values[i].value.ui = (unsigned)(mean_w(gpu, now_s(), 0.025) * 1e3);
    else values[i].code = UNSUPPORTED;
  }
  return OK;
}

int nvmlDeviceGetUtilizationRates(Gpu *gpu, unsigned *rates) {
  if (gone(gpu)) return LOST;
  rates[0] = 50; rates[1] = 25;
  return OK;
}
int nvmlDeviceGetMemoryInfo(Gpu *gpu, unsigned long long *memory) {
  if (gone(gpu)) return LOST;
  memory[0] = 80ull << 30; memory[1] = 60ull << 30; memory[2] = 20ull << 30;
  return OK;
}
int nvmlDeviceGetTemperature(Gpu *gpu, int sensor, unsigned *c) {
  (void)gpu; (void)sensor; *c = 55; return OK;
}
int nvmlDeviceGetClockInfo(Gpu *gpu, int kind, unsigned *mhz) {
  (void)gpu; *mhz = kind == 1 ? 1980 : 2619; return OK;
}
int nvmlDeviceGetCurrentClocksThrottleReasons(Gpu *gpu, unsigned long long *why) {
  (void)gpu; *why = 4; return OK;
}
int nvmlDeviceGetMigMode(Gpu *gpu, unsigned *current, unsigned *pending) {
  *current = *pending = gpu->migs > 0; return OK;
}
int nvmlDeviceGetMaxMigDeviceCount(Gpu *gpu, unsigned *count) {
  (void)gpu; *count = MAX_MIGS; return OK;
}
int nvmlDeviceGetMigDeviceHandleByIndex(Gpu *gpu, unsigned index, void **device) {
  if ((int)index >= gpu->migs) return NOT_FOUND;
  *device = &gpu->mig[index];
  return OK;
}
int nvmlDeviceGetAttributes_v2(Mig *mig, unsigned *attributes) {
  memset(attributes, 0, 40);
  attributes[6] = mig->slices;
  return OK;
}
