# skymoe. `make help` lists the targets. Objects go to $(OUT); other builds (asan, clang) use another OUT.
CC = gcc
CXX = g++
OUT = build
MODE = -O2 -g
WARN = -Wall -Wextra -Wshadow -Wvla -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith -Wno-unknown-pragmas
OPENMP = -fopenmp
CFLAGS = -std=gnu11 $(MODE) $(WARN) $(OPENMP) -fno-math-errno -ffp-contract=off -Isrc -MMD -MP $(EXTRA)
CXXFLAGS = -std=c++17 $(MODE) -Wall -Wextra -Isrc -MMD -MP $(EXTRA)
# MPI=mpich builds with the other library; mpi.h is included by src/comm/mpi.c alone.
MPI = ompi-c
LIBS = -ldnnl -lsentencepiece_train -lsentencepiece -lcjson -lxxhash -ledit $(shell pkg-config --libs $(MPI)) -lm

SOURCES := $(wildcard src/*/*.c src/*/*/*.c)
OBJECTS := $(SOURCES:%.c=$(OUT)/%.o) $(patsubst %.cc,$(OUT)/%.o,$(wildcard src/*/*.cc))
MAIN := $(OUT)/src/cli/main.o
LIBRARY := $(OUT)/libskymoe.a
TESTS := $(patsubst tests/%.c,$(OUT)/tests/%,$(wildcard tests/test_*.c))
FUZZERS := $(patsubst tests/%.c,$(OUT)/tests/%,$(wildcard tests/fuzz/fuzz_*.c))

# The other builds: each is this Makefile again with another compiler or other flags.
CHECKED = -fno-omit-frame-pointer -fno-sanitize-recover=undefined -DSKYMOE_TEST_FAULTS
ASAN = OUT=build/asan MODE="-O1 -g" EXTRA="-fsanitize=address,undefined $(CHECKED)"
FUZZ = OUT=build/fuzz MODE="-O1 -g" CC=clang CXX=clang++ OPENMP= \
    EXTRA="-fsanitize=fuzzer-no-link,address,undefined -fprofile-instr-generate -fcoverage-mapping $(CHECKED)"
TSAN = OUT=build/tsan MODE="-O1 -g" CC=clang CXX=clang++ EXTRA="-fsanitize=thread -Wno-pass-failed"
CLANG = OUT=build/clang MODE=-O1 CC=clang CXX=clang++ OPENMP= EXTRA="-Werror -Wshorten-64-to-32 -Wconditional-uninitialized \
    -Wunreachable-code-aggressive -Wnewline-eof -Wextra-semi -Wmissing-variable-declarations -Wundef"

all: $(OUT)/skymoe  ## the program, build/skymoe

$(OUT)/skymoe: $(MAIN) $(LIBRARY)
	$(CXX) $(MODE) $(OPENMP) $(EXTRA) -o $@ $^ $(LIBS)

$(LIBRARY): $(filter-out $(MAIN),$(OBJECTS))
	@rm -f $@
	$(AR) rcs $@ $^

# The reference has plain loops over numbers one behind the other: gcc's -O2 would leave most of them scalar.
$(OUT)/src/kernels/ref/%.o: CFLAGS += $(if $(findstring clang,$(CC)),,-fvect-cost-model=dynamic)

# Kernels for one instruction set, chosen at run time; nothing else is built with -m flags.
FAST = $(patsubst -O2,-O3,$(filter -O2,$(MODE))) -ffp-contract=fast
AVX2 = -mavx2 -mfma -mf16c
AVX512 = $(AVX2) -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512
$(OUT)/src/kernels/x86/%_avx2.o: CFLAGS += $(FAST) $(AVX2)
$(OUT)/src/kernels/x86/%_avx512.o: CFLAGS += $(FAST) $(AVX512)
$(OUT)/src/kernels/x86/%_avx512bf16.o: CFLAGS += $(FAST) $(AVX512) -mavx512bf16 -mavx512vbmi

$(OUT)/src/comm/mpi.o $(OUT)/tests/test_bytes.o: CFLAGS += $(shell pkg-config --cflags $(MPI) | sed 's/-I/-isystem /g')

$(OUT)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -c -o $@ $<

$(OUT)/%.o: %.cc
	@mkdir -p $(@D)
	$(CXX) $(CXXFLAGS) -c -o $@ $<

$(OUT)/tests/test_%: $(OUT)/tests/test_%.o $(LIBRARY)
	$(CXX) $(MODE) $(OPENMP) $(EXTRA) -o $@ $(filter %.o,$^) $(LIBRARY) $(LIBS) -lcmocka $(WRAP)

# A program that does to itself what SKYMOE_FAULT says: its own alive.o comes before the library's.
$(OUT)/faulty/alive.o: src/comm/alive.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -DSKYMOE_TEST_FAULTS -c -o $@ $<
$(OUT)/skymoe-faulty: $(MAIN) $(OUT)/faulty/alive.o $(LIBRARY)
	$(CXX) $(MODE) $(OPENMP) $(EXTRA) -o $@ $^ $(LIBS)

# test_faults puts tests/faults.c between the program and the system; what stands between may not be instrumented.
FAULT_CALLS = open openat fstat read write mmap fsync close rename mkdir rmdir unlink unlinkat opendir fdopendir readdir \
    fopen pthread_create
$(OUT)/tests/test_faults: $(OUT)/tests/faults.o
$(OUT)/tests/test_faults: WRAP = -rdynamic $(FAULT_CALLS:%=-Wl,--wrap=%)
$(OUT)/tests/faults.o: CFLAGS += -fno-sanitize=all -fno-builtin

$(OUT)/tests/fuzz/%: $(OUT)/tests/fuzz/%.o $(LIBRARY)
	$(CXX) $(MODE) $(EXTRA) -fsanitize=fuzzer -o $@ $^ $(LIBS) -lgomp

objects: $(OBJECTS) $(TESTS:%=%.o) $(OUT)/tests/faults.o
fuzzers: $(FUZZERS)

test: $(OUT)/skymoe $(OUT)/skymoe-faulty $(TESTS)  ## every test program
	@SKYMOE=$(OUT)/skymoe tests/run.sh $(TESTS)

asan:  ## every test program with AddressSanitizer and UndefinedBehaviorSanitizer
	@$(MAKE) $(ASAN) test

# clang's OpenMP tells ThreadSanitizer who waits for whom (through libarcher), which gcc's does not; oneDNN is not
# instrumented and left alone. Threads are used by kernels, by prepare, and by base/output.c for files of more than
# 4 MiB (save, upcycle, quantize).
TSAN_TESTS = $(patsubst %,build/tsan/tests/%,test_kernels test_prepare test_step test_moe test_files)
tsan:  ## the programs that use threads, with ThreadSanitizer
	@$(MAKE) $(TSAN) $(TSAN_TESTS)
	@TSAN_OPTIONS=ignore_noninstrumented_modules=1 OMP_NUM_THREADS=3 tests/run.sh $(TSAN_TESTS)

old: all $(OUT)/tests/test_kernels $(OUT)/tests/test_reference  ## processors without AVX-512 and AVX2, played by qemu
	@tests/old_processor.sh $(OUT)

mpich:  ## the other MPI library: groups and layouts of two ranks
	@$(MAKE) OUT=build/mpich MPI=mpich build/mpich/tests/test_comm build/mpich/tests/test_layouts
	@MPIRUN=mpiexec.mpich LAYOUT_RANKS=2 tests/run.sh build/mpich/tests/test_comm build/mpich/tests/test_layouts

clang:  ## compiles everything with clang, warnings are errors
	@$(MAKE) $(CLANG) objects

lint:  ## rules that no compiler checks: who includes whom, what is allowed where
	@tools/lint.sh

fuzz:  ## feeds every parser damaged input, FUZZ_SECONDS=30 each, and says how much of it the seeds reach
	@$(MAKE) $(FUZZ) fuzzers
	@tests/fuzz/run.sh build/fuzz/tests/fuzz

mutate: all  ## breaks the code on purpose and sees the tests catch it
	@tests/mutations/run.sh

bench: all  ## speed of kernels, training and decoding beside the machine's peaks
	@$(OUT)/skymoe bench

demo: all  ## the whole main job on real text; DEMO_SIZE=tiny for a minute's version
	@SKYMOE=$(OUT)/skymoe tools/demo.sh

ci:  ## what has to pass before a change is taken
	@tools/ci.sh

help:  ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

clean:  ## removes build/
	rm -rf build

-include $(OBJECTS:.o=.d) $(TESTS:%=%.d) $(OUT)/tests/faults.d $(FUZZERS:%=%.d)
.PHONY: all objects fuzzers test asan tsan old mpich clang lint fuzz mutate bench demo ci help clean
export DEMO_SIZE DEMO_DIR DEMO_SEED FUZZ_SECONDS
.SECONDARY:
