select epoch, "offset", duplicate from crossfade.append($1, $2, $3, $4, $5)
