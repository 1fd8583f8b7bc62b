# What one types here; `just` lists it.
default:
    @just --list

# Everything that decides whether a change is ready.
check:
    scripts/test

# The tests of one name: `just test delivery::`.
test name="":
    cargo test --workspace -- {{name}}

# The gateway with the embedded broker.
run:
    cargo run --release

# Two nodes on one Redis of their own, on ports 8081 and 8082.
cluster:
    scripts/cluster

# The load test: `just load check`, `just load fanout --compare crossfade-ws limit --html page.html`.
load *arguments="idle":
    cargo build --release --workspace
    target/release/crossfade-load {{arguments}}

# A fuzz target for a minute: rfc6455_decode or client_frame.
fuzz target="rfc6455_decode":
    cargo +nightly fuzz run {{target}} -- -max_total_time=60
