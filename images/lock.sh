#!/bin/sh
# Renews the locks of all images. `make lock` runs it after requirements.lock, with the path of uv.
set -eu
uv=$1
cd "$(dirname "$0")"

lock() {
    "$uv" pip compile --quiet --python-version 3.11 --python-platform linux --only-binary :all: --generate-hashes \
        --custom-compile-command 'make lock' "$@"
}

# without LOCK: the arguments that leave out what LOCK holds already.
without() {
    sed -n 's/^\([A-Za-z0-9._-]*\)==.*/--no-emit-package \1/p' "$1"
}

lock --no-deps -o runtime.lock runtime.in
for input in build-tools.in */*.in; do
    lock -o "${input%.in}.lock" "$input"
done

# A step's lock holds what its extra names, less what the image below it has. A variant (train-cu126) has the packages
# of its step over a torch of its own.
for file in */Containerfile; do
    step=${file%/Containerfile}
    test ! -e "$step/requirements.in" || continue
    torch=$(sed -n 's|^ARG BASE=chatmetrics/||p' "$file")
    for image in "$step" "$step"-*; do
        test -d "$image" || continue
        variant=${image#"$step"}
        below=${torch:+$torch$variant/requirements.lock}
        constraints=../requirements.lock
        test -z "$variant" || constraints=$step/requirements.lock
        # shellcheck disable=SC2046  # one argument a word
        lock --extra "$step" -c "$constraints" ${below:+-c "$below" $(without "$below")} \
            -o "$image/requirements.lock" ../pyproject.toml
    done
done
