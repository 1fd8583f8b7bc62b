-- Like read_after.sql, backwards.
select c.epoch, c.head, e."offset", e.id, e.name, e.data, e.time
from crossfade.channel c
left join lateral (
    select * from crossfade.event e where e.channel = c.id and e."offset" <= $2
    order by e."offset" desc limit $3
) e on true
where c.name = $1
order by e."offset" desc
