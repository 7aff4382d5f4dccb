"""The command `proxycast`: models scored and ranked, studies written, checked, estimated and watched."""
