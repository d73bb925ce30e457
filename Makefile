# make demo      build wythe, then an image with it, twice; no network but cargo's
# make test      format, lints and all tests
# make test-vm   the demo and tests of containers on Debian 12's kernel, under qemu
# make bench     time builds by the binary of `make release`, also against buildah
# make guard     fail if a build has become much slower, or its pure parts take more instructions
# make projects  the same for real projects, with the network of package managers
# make release   one static binary in target/release-static/
# make install   wythe, and `build` as a link to it, into $(PREFIX)/bin
# make deps      what tests and benchmarks call, from apt when root
# make fmt lint  what `make test` begins with

PREFIX ?= /usr/local
CARGO ?= cargo
# The program that the demo uses: WYTHE=target/debug/wythe saves an optimised build.
WYTHE ?= target/release/wythe

machine := $(shell uname -m)
musl := $(machine)-unknown-linux-musl
max_bytes := 9000000

# The C in TLS needs nothing of a libc: the system's compiler makes it for musl, too.
export CC_$(subst -,_,$(musl)) ?= cc

.PHONY: all demo test test-vm bench guard projects release install deps fmt fmt-check lint clean
.DELETE_ON_ERROR:

all: target/release/wythe

# Cargo knows what is up to date.
.PHONY: target/release/wythe target/debug/wythe
target/release/wythe:
	$(CARGO) build --release --bin wythe

target/debug/wythe:
	$(CARGO) build --bin wythe

demo: $(WYTHE)
	demo/run.sh $(WYTHE) target/demo

test: deps fmt-check lint
	$(CARGO) test

# Not part of `.ci/run`: it downloads packages, and without hardware that helps it takes a while.
test-vm:
	tests/vm/run.sh $(FILTER)

bench: deps release
	WYTHE=$(CURDIR)/target/release-static/wythe $(CARGO) bench --bench suite

# Crates are those that tests use, so that only our own code is compiled once more.
optimized := --profile dev --config profile.dev.opt-level=2 --config profile.dev.debug=false

guard: deps
	$(CARGO) bench $(optimized) --bench counts
	$(CARGO) bench $(optimized) --bench suite -- --cheap --check --rounds 5

projects: $(WYTHE)
	benches/projects/run.sh $(WYTHE) target/projects

fmt:
	$(CARGO) fmt

fmt-check:
	$(CARGO) fmt --check

lint:
	$(CARGO) clippy --all-targets -- -D warnings

deps:
	@.ci/deps

# Nothing unwinds there: a panic aborts. Relocations take a tenth of the room, and less time at every start.
static_flags := -C force-unwind-tables=no -C link-arg=-Wl,-z,pack-relative-relocs

release:
	@rustc --print target-libdir --target $(musl) | xargs test -d || { \
	    echo "adding the Rust target $(musl)"; \
	    command -v rustup > /dev/null && rustup target add $(musl); \
	} || { \
	    echo "there is no standard library for $(musl): install rustup, then run \`rustup target add $(musl)\`" >&2; \
	    exit 1; \
	}
	RUSTFLAGS="$(RUSTFLAGS) $(static_flags)" $(CARGO) build --release --bin wythe --target $(musl)
	@mkdir -p target/release-static
	@cp target/$(musl)/release/wythe target/release-static/wythe
	@ldd target/release-static/wythe 2>&1 | grep -q -e 'statically linked' -e 'not a dynamic executable' || { \
	    echo "target/release-static/wythe is not static" >&2; exit 1; }
	@bytes=$$(wc -c < target/release-static/wythe); \
	    echo "target/release-static/wythe: static, $$bytes bytes"; \
	    [ $$bytes -le $(max_bytes) ] || { echo "more than the $(max_bytes) bytes it may have" >&2; exit 1; }

install: target/release/wythe
	install -D -m 755 target/release/wythe $(DESTDIR)$(PREFIX)/bin/wythe
	ln -sf wythe $(DESTDIR)$(PREFIX)/bin/build

clean:
	$(CARGO) clean
