#!/bin/sh
# A compiler launcher for code with wgmma. Where ptxas gives up that products are asynchronous, it only informs
# (C7510, C7511, C7519 ...), which no option of it makes an error; here it is one.
output=$("$@" 2>&1)
status=$?
[ -z "$output" ] || printf '%s\n' "$output" >&2
case $output in
*"(C75"*)
  echo "error: wgmma is serialised (C75..., above)" >&2
  exit 1
  ;;
esac
exit $status
