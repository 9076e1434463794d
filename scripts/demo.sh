#!/usr/bin/env bash
# The whole story so far, on real photographs: 60,000 images of CIFAR-10 with the labels that people really gave them
# (CIFAR-10N). Every step is a command you can run yourself; a second run finds everything done.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"
OUT=${OUT:-demo}
N=${N:-16667}      # images to pretrain on: a third of the corpus
EPOCHS=${EPOCHS:-6}
started=$(date +%s)

step() { # step "what for" command...
    local begin=$SECONDS
    printf '\n\033[1m%s\033[0m\n$ %s\n' "$1" "${*:2}"
    "${@:2}"
    printf '\033[2m%d s\033[0m\n' $((SECONDS - begin))
}

step "Real photographs, with the labels that three people gave each of them" \
    tenfold fetch cifar10n --to "$OUT/data"
step "They become a table in random order: any prefix of it is a random subset" \
    tenfold corpus ingest "$OUT/data/cifar10n" --to "$OUT/corpus"
step "Labels are completed upward: a cat is an animal too" \
    tenfold corpus close "$OUT/corpus"
step "The test photographs, as a corpus of their own" \
    tenfold corpus ingest "$OUT/data/cifar10n" --split test --to "$OUT/test"
tenfold corpus close "$OUT/test" --json >/dev/null
step "Which test photographs are in the corpus already, or nearly?" \
    tenfold corpus gate "$OUT/corpus" --test "$OUT/test" --name test
step "What the corpus is, on one page" \
    tenfold corpus report "$OUT/corpus" --out "$OUT/corpus.html"
step "Pretrain a small ResNet on $N of them, on two ranks" \
    tenfold pretrain cifar10n --corpus "$OUT/corpus@closed" --monitor "$OUT/test@closed" \
    --n "$N" --epochs "$EPOCHS" --ranks 2 --out "$OUT/pretrain"
step "What an untrained trunk is worth on the 10,000 test photographs" \
    tenfold probe random:cifar10n --corpus "$OUT/corpus@ingested" --test "$OUT/test@ingested"
step "What the pretrained one is worth, with and without the near-duplicates" \
    tenfold probe "$OUT/pretrain" --corpus "$OUT/corpus@ingested" --test "$OUT/test@ingested" --gate test

printf '\nDone in %d s. Look at %s and at the gate'"'"'s pairs in %s;\n' $(($(date +%s) - started)) "$OUT/corpus.html" "$OUT/corpus/gates/"
printf 'then see what more data buys: tenfold pretrain cifar10n --corpus %s@closed --ranks 2 --out %s/all\n' "$OUT/corpus" "$OUT"
