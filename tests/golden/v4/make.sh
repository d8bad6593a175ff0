#!/bin/sh
# Makes the golden files of format version 4 of circuits, and of version 3 of bundles and keys, in the current folder, with the `thex` of the commit that
# added them (0.1.0):
#
#   cd tests/golden/v4 && THEX=../../../target/release/thex ./make.sh
#
# As in v1: append-only, not run again, keys from seed 1 that protect nothing. Ciphertexts still have version 1.
set -eu
exports=../../models/exports
mkdir -p external
# Sums of external products, and a conversion key.
"$THEX" compile $exports/attention_operator_op23.onnx --calibration $exports/attention_operator_op23.npz --profile the-x \
    --parameters n=1000,k=1,N=2048,ks=3x6,bs=9x4,pk=10x4,gf=2 -o external/m
"$THEX" keygen external/m.client -o external/keys --seed 1
"$THEX" encrypt external/m.client --key external/keys/client.key --input $exports/attention_operator_op23.npz -o external/in.ct
"$THEX" run external/m.circuit --key external/keys/server.key --input external/in.ct -o external/out.ct
"$THEX" decrypt external/m.client --key external/keys/client.key --input external/out.ct --json > external/expected.json
mv external/keys/client.key external/client.key
rm -r external/keys external/m.report.json external/m.graph external/out.ct
