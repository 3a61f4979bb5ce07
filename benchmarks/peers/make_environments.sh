#!/bin/sh
# Makes the virtual environments of the peers that benchmarks/input_pipeline.py compares with.
#
#     sh benchmarks/peers/make_environments.sh FOLDER [tensorflow] [torch] [grain]
#
# Without names, all of them. PYTHON=python3.11 chooses the Python (TensorFlow 2.15 has none above 3.11);
# TORCH='torch==2.13.0 --index-url ADDRESS' another build of torch.
set -eu

if [ $# -eq 0 ]; then
    echo "usage: $0 FOLDER [tensorflow] [torch] [grain]" >&2
    exit 2
fi
folder=$1
shift
[ $# -gt 0 ] || set -- tensorflow torch grain

install() {
    environment=$folder/$1
    shift
    "${PYTHON:-python3}" -m venv "$environment"
    "$environment/bin/python" -m pip --disable-pip-version-check install --quiet "$@"
}

for name in "$@"; do
    case $name in
        tensorflow) install tensorflow tensorflow-cpu==2.15.1 'numpy<2' ;;
        torch)
            # shellcheck disable=SC2086 # a requirement, and options perhaps
            install torch ${TORCH:-torch==2.13.0}
            install torch numpy==2.4.6 pillow==13.0.0
            ;;
        grain) install grain grain==0.2.18 numpy==2.4.6 ;;
        *)
            echo "$0: no peer is called $name: tensorflow, torch, grain" >&2
            exit 2
            ;;
    esac
done
