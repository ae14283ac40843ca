# Shared by the scripts `make_environment.sh FOLDER`, which install what some tests run against. They source this file,
# which sees their arguments: it reads FOLDER and $PYTHON, and defines `into`.
set -euo pipefail
folder=${1:?usage: make_environment.sh FOLDER}
python=${PYTHON:-python3.11}

into() { # into NAME PACKAGE... installs packages into the environment FOLDER/NAME, which it makes if there is none
  local name=$1
  shift
  [ -d "$folder/$name" ] || "$python" -m venv "$folder/$name"
  "$folder/$name/bin/python" -m pip --disable-pip-version-check install --quiet "$@"
}
