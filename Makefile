# skymoe. `make help` lists the targets. Objects go to $(OUT); other builds (asan, clang) use another OUT.
CC = gcc
CXX = g++
OUT = build
MODE = -O2 -g
WARN = -Wall -Wextra -Wshadow -Wvla -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith -Wno-unknown-pragmas
OPENMP = -fopenmp
CFLAGS = -std=gnu11 $(MODE) $(WARN) $(OPENMP) -fno-math-errno -ffp-contract=off -Isrc -MMD -MP $(EXTRA)
CXXFLAGS = -std=c++17 $(MODE) -Wall -Wextra -Isrc -MMD -MP $(EXTRA)
LIBS = -ldnnl -lsentencepiece -lcjson -lxxhash -lm

SOURCES := $(wildcard src/*/*.c src/*/*/*.c)
OBJECTS := $(SOURCES:%.c=$(OUT)/%.o) $(patsubst %.cc,$(OUT)/%.o,$(wildcard src/*/*.cc))
MAIN := $(OUT)/src/cli/main.o
LIBRARY := $(OUT)/libskymoe.a
TESTS := $(patsubst tests/%.c,$(OUT)/tests/%,$(wildcard tests/test_*.c))

all: $(OUT)/skymoe  ## the program, build/skymoe

$(OUT)/skymoe: $(MAIN) $(LIBRARY)
	$(CXX) $(MODE) $(OPENMP) $(EXTRA) -o $@ $^ $(LIBS)

$(LIBRARY): $(filter-out $(MAIN),$(OBJECTS))
	@rm -f $@
	$(AR) rcs $@ $^

$(OUT)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -c -o $@ $<

$(OUT)/%.o: %.cc
	@mkdir -p $(@D)
	$(CXX) $(CXXFLAGS) -c -o $@ $<

$(OUT)/tests/test_%: $(OUT)/tests/test_%.o $(LIBRARY)
	$(CXX) $(MODE) $(OPENMP) $(EXTRA) -o $@ $^ $(LIBS) -lcmocka

help:  ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

clean:  ## removes build/
	rm -rf build

-include $(OBJECTS:.o=.d) $(TESTS:%=%.d)
.PHONY: all help clean
.SECONDARY:
