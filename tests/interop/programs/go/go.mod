module vmtoken.invalid/echo

go 1.24
