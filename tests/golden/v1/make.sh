#!/bin/sh
# Makes the golden files of format version 1 in the current folder, with the `thex` of the commit that added them (0.1.0):
#
#   cd tests/golden/v1 && THEX=../../../target/release/thex ./make.sh
#
# They are append-only: a later format gets a folder v2 beside this one, and this script is not run again. Encryption is random, so
# another run gives other ciphertexts of the same values. The keys are from seed 1 and protect nothing. Server keys (156 MB each)
# are not kept: the same seed makes them again. `runtime/tests/golden.rs` reads, runs and decrypts all of it.
set -eu
data=../../data
exports=../../models/exports

# one NAME, then the arguments of `encrypt` that say what.
one() {
    name=$1
    shift
    "$THEX" keygen "$name/m.client" -o "$name/keys" --seed 1
    "$THEX" encrypt "$name/m.client" --key "$name/keys/client.key" "$@" -o "$name/in.ct"
    "$THEX" run "$name/m.circuit" --key "$name/keys/server.key" --input "$name/in.ct" -o "$name/out.ct"
    "$THEX" decrypt "$name/m.client" --key "$name/keys/client.key" --input "$name/out.ct" --json > "$name/expected.json"
    mv "$name/keys/client.key" "$name/client.key"
    rm -r "$name/keys" "$name/m.report.json" "$name/m.graph"
}

mkdir -p text attention
# Prologue with a table, tokenizer, labels; linear, keyswitch, pbs.
"$THEX" compile ../../models/tiny_text.onnx --calibration $data/tiny_text_calibration.npz \
    --tokenizer $data/tiny_tokenizer.json --labels $data/tiny_labels.txt -o text/m
one text --text "The film was great fun!"
# All five instructions.
"$THEX" compile $exports/attention_operator_op23.onnx --calibration $exports/attention_operator_op23.npz --profile the-x -o attention/m
one attention --input $exports/attention_operator_op23.npz
# 1.5 MB, and a run makes another one that is as good.
rm attention/out.ct
