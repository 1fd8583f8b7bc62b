-- Ids whose window is over, at most $1 of them; one that is being renewed right now is left alone.
delete from crossfade.receipt where ctid = any (array(
    select r.ctid from crossfade.receipt r where r.until <= crossfade.now_ms()
    limit $1 for update skip locked
))
returning 1
